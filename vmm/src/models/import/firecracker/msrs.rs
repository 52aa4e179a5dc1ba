//! MSR modifiers: initial values in KVM, and constants where KVM has no such MSR.

use msr_filter::{MsrModifier, MsrRange};
use toml::Value;

use crate::models::import::{Imported, device, kvm_msrs, msr, table, value};
use msr_kvm::{InitialMsr, OnRefusal};

/// Makes initial values and constants of the modifiers.
pub(super) fn import(modifiers: &[MsrModifier], refused: OnRefusal, imported: &mut Imported) {
    let given = modifiers.iter().filter(|modifier| modifier.mask != 0);
    let (kept, others): (Vec<&MsrModifier>, Vec<_>) =
        given.partition(|modifier| kvm_msrs::has(modifier.index));
    let initial = kept.into_iter().map(|modifier| InitialMsr {
        index: modifier.index,
        value: modifier.value,
        mask: modifier.mask,
        refused,
    });
    imported.model.msr.initial.extend(initial);
    if others.is_empty() {
        return;
    }
    let registers = others.iter().map(|modifier| {
        let keys = [
            ("msr", msr(modifier.index)),
            ("value", value(modifier.value)),
        ];
        Value::Table(table(keys))
    });
    let registers = Value::Array(registers.collect());
    let devices = &mut imported.model.msr.devices;
    devices.push(device("table", [("register", registers)]));
    let msrs: Vec<String> = others
        .iter()
        .map(|modifier| MsrRange::single(modifier.index).to_string())
        .collect();
    imported.note(format!(
        "KVM has no MSR {}: constants of a table device, a write to which is #GP.",
        msrs.join(", ")
    ));
    for modifier in others.iter().filter(|modifier| modifier.mask != u64::MAX) {
        imported.note(format!(
            "MSR {:#x}: the bits that the template leaves to KVM, {:#x}, are 0.",
            modifier.index, !modifier.mask
        ));
    }
}
