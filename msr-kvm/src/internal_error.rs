//! `KVM_EXIT_INTERNAL_ERROR`, in words.

use std::fmt;

use kvm_bindings::{
    KVM_INTERNAL_ERROR_DELIVERY_EV, KVM_INTERNAL_ERROR_EMULATION,
    KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES, KVM_INTERNAL_ERROR_SIMUL_EX,
    KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON, kvm_run,
};

/// The contents of `KVM_EXIT_INTERNAL_ERROR` (Documentation/virt/kvm/api.rst, section 5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InternalError {
    /// `KVM_INTERNAL_ERROR_*`.
    pub suberror: u32,
    /// The instruction that KVM could not emulate, and what follows it, where KVM tells (Linux 5.15).
    pub instruction: Option<Vec<u8>>,
}

impl InternalError {
    /// Reads the error out of a `kvm_run` whose exit reason is `KVM_EXIT_INTERNAL_ERROR`.
    pub fn from_run(run: &kvm_run) -> Self {
        // SAFETY: plain integers in each of the union's variants, so that any bytes are valid; that this
        // variant is the meaningful one is the caller's promise.
        let failure = unsafe { run.__bindgen_anon_1.emulation_failure };
        // SAFETY: as above, and this inner union has one variant.
        let bytes = unsafe { failure.__bindgen_anon_1.__bindgen_anon_1 };
        // KVM before 5.15 gives no data (`ndata` 0), and `flags` is stale then.
        let has_bytes = failure.suberror == KVM_INTERNAL_ERROR_EMULATION
            && failure.ndata > 0
            && failure.flags & u64::from(KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES) != 0;
        Self {
            suberror: failure.suberror,
            instruction: has_bytes.then(|| {
                let len = bytes.insn_bytes.len().min(usize::from(bytes.insn_size));
                bytes.insn_bytes[..len].to_vec()
            }),
        }
    }
}

impl fmt::Display for InternalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = match self.suberror {
            KVM_INTERNAL_ERROR_EMULATION => "KVM had to emulate an instruction and cannot",
            KVM_INTERNAL_ERROR_SIMUL_EX => "exceptions at the same time that KVM cannot combine",
            KVM_INTERNAL_ERROR_DELIVERY_EV => "a fault while an event was delivered",
            KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON => "the hardware gave an unknown exit reason",
            _ => "unknown to this program",
        };
        write!(
            f,
            "KVM_EXIT_INTERNAL_ERROR suberror {}: {words}",
            self.suberror
        )?;
        if let Some(bytes) = &self.instruction {
            f.write_str(" (bytes at RIP:")?;
            bytes.iter().try_for_each(|byte| write!(f, " {byte:02x}"))?;
            f.write_str(")")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_internal_error_names_suberror_and_bytes() {
        let error = InternalError {
            suberror: 1,
            instruction: Some(vec![0xcc, 0xf4]),
        };
        assert_eq!(
            error.to_string(),
            "KVM_EXIT_INTERNAL_ERROR suberror 1: KVM had to emulate an instruction and cannot \
             (bytes at RIP: cc f4)"
        );
        let error = InternalError {
            suberror: 99,
            instruction: None,
        };
        assert_eq!(
            error.to_string(),
            "KVM_EXIT_INTERNAL_ERROR suberror 99: unknown to this program"
        );
    }

    #[test]
    fn instruction_bytes_are_taken_only_where_kvm_gives_them() {
        let mut run = kvm_run::default();
        run.__bindgen_anon_1.emulation_failure.suberror = KVM_INTERNAL_ERROR_EMULATION;
        run.__bindgen_anon_1.emulation_failure.flags = 1;
        assert_eq!(InternalError::from_run(&run).instruction, None);

        run.__bindgen_anon_1.emulation_failure.ndata = 4;
        let mut bytes =
            kvm_bindings::kvm_run__bindgen_ty_1__bindgen_ty_14__bindgen_ty_1__bindgen_ty_1 {
                // More than there is room for: KVM's word is not taken for it.
                insn_size: 200,
                ..Default::default()
            };
        bytes.insn_bytes[0] = 0xcc;
        run.__bindgen_anon_1
            .emulation_failure
            .__bindgen_anon_1
            .__bindgen_anon_1 = bytes;
        let error = InternalError::from_run(&run);
        assert_eq!(error.suberror, 1);
        assert_eq!(error.instruction.map(|i| (i.len(), i[0])), Some((15, 0xcc)));
    }
}
