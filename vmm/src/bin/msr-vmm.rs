//! The `msr-vmm` command: see `msr_vmm::cli`.

fn main() -> std::process::ExitCode {
    msr_vmm::cli::main()
}
