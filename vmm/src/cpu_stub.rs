//! stub
use kvm_ioctls::*;
use msr_bus::*;
/// .
#[derive(Debug, thiserror::Error)]
#[error("stub")]
pub struct CpuError;
impl CpuError {
    /// .
    pub fn is_usage(&self) -> bool {
        true
    }
}
/// .
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct CpuModel {}
/// .
pub fn identity(_: &Kvm, _: &CpuModel) -> Result<CpuIdentity, CpuError> {
    Ok(msr_bus::testing::context(Topology::flat(1)).cpu)
}
/// .
pub fn configure(
    kvm: &Kvm,
    _: &VmFd,
    fds: &[VcpuFd],
    t: &Topology,
    _: &CpuModel,
) -> Result<(), CpuError> {
    for (i, fd) in fds.iter().enumerate() {
        let id = crate::cpu::topology::apic_id(t, VcpuId(i as u32));
        let mut c = kvm.get_supported_cpuid(256).unwrap();
        for e in c.as_mut_slice() {
            match e.function {
                1 => {
                    e.ebx = e.ebx & 0xffffff | id << 24;
                    e.ecx |= 1 << 24;
                }
                0xb | 0x1f => e.edx = id,
                _ => {}
            }
        }
        fd.set_cpuid2(&c).unwrap();
    }
    Ok(())
}
/// .
pub fn cmdline(_: &CpuModel, c: &str, _: &VcpuFd) -> String {
    c.into()
}
