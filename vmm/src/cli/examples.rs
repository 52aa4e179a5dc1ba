//! Examples of each command, for its help and its man page. Tests run every one of them.

/// A command line, and what it does.
pub(crate) struct Example {
    pub(crate) what: &'static str,
    pub(crate) command: &'static str,
}

const fn example(what: &'static str, command: &'static str) -> Example {
    Example { what, command }
}

/// The examples of a subcommand, such as `trace-show`; of the command itself where that is `msr-vmm`.
pub(crate) fn of(command: &str) -> &'static [Example] {
    match command {
        "msr-vmm" => {
            &const {
                [
                    example(
                        "Boot a kernel with an initrd",
                        "msr-vmm run --kernel vmlinuz --initrd initrd.img",
                    ),
                    example(
                        "Find out whether this host can boot guests",
                        "msr-vmm check",
                    ),
                ]
            }
        }
        "run" => {
            &const {
                [
                    example(
                        "Boot two vCPUs with 1 GiB of memory and a disk",
                        "msr-vmm run --kernel vmlinuz --initrd initrd.img --cpus 2 --memory 1G --disk disk.img",
                    ),
                    example(
                        "Let the kernel move to random addresses, as on hardware",
                        "msr-vmm run --kernel vmlinuz --initrd initrd.img --kaslr",
                    ),
                    example(
                        "Show the guest an Ice Lake server, with more of its own from a file",
                        "msr-vmm run --config vm.toml --model icelake-server",
                    ),
                    example(
                        "Log each MSR access that reaches userspace",
                        "msr-vmm run --config vm.toml --log trace",
                    ),
                    example(
                        "Print what a file and options amount to",
                        "msr-vmm run --config vm.toml --cpus 4 --print-config",
                    ),
                ]
            }
        }
        "restore" => {
            &const {
                [
                    example(
                        "Carry on the VM that was saved there",
                        "msr-vmm restore saved.vm",
                    ),
                    example(
                        "The same with a copy of its disk, steered by a socket of its own",
                        "msr-vmm restore saved.vm --disk copy.img --control copy.sock",
                    ),
                    example(
                        "The same, and let it be saved again in one folder",
                        "msr-vmm restore saved.vm --snapshots saved --control vm.sock",
                    ),
                ]
            }
        }
        _ if command == "ctl" || command.starts_with("ctl-") => {
            &const {
                [
                    example("Print the VM's state", "msr-vmm ctl vm.sock status"),
                    example(
                        "Make the guest's CPU hot",
                        "msr-vmm ctl vm.sock device set thermal source=constant celsius=95",
                    ),
                    example(
                        "Read an MSR of the second vCPU as the guest would",
                        "msr-vmm ctl vm.sock read IA32_THERM_STATUS --vcpu 1",
                    ),
                    example(
                        "Begin the scenarios of a file",
                        "msr-vmm ctl vm.sock scenario heat.toml",
                    ),
                    example(
                        "Record the accesses of a VM that runs with --sandbox=off from now on",
                        "msr-vmm ctl vm.sock trace start now.trace",
                    ),
                    example(
                        "Save a VM that runs with --snapshots in a new folder there",
                        "msr-vmm ctl vm.sock snapshot saved.vm",
                    ),
                ]
            }
        }
        "check" => {
            &const {
                [
                    example("Check the host", "msr-vmm check"),
                    example(
                        "Check a configuration as well, for a program",
                        "msr-vmm check --config vm.toml --json",
                    ),
                ]
            }
        }
        "filter" => {
            &const {
                [
                    example("Print the ranges that KVM gets", "msr-vmm filter vm.toml"),
                    example(
                        "Compare two configurations",
                        "msr-vmm filter vm.toml --diff other.toml",
                    ),
                    example(
                        "Print the filter of a CPU model",
                        "msr-vmm filter --model zen3-server",
                    ),
                ]
            }
        }
        "explain" => {
            &const {
                [
                    example(
                        "Who answers MSR_PLATFORM_INFO, and why",
                        "msr-vmm explain MSR_PLATFORM_INFO --config vm.toml",
                    ),
                    example(
                        "The same for an index and a model, as JSON",
                        "msr-vmm explain 0x611 --model icelake-server --json",
                    ),
                ]
            }
        }
        "devices" => {
            &const {
                [
                    example("List all device models", "msr-vmm devices"),
                    example("Show one", "msr-vmm devices rapl"),
                ]
            }
        }
        "config" => {
            &const {
                [
                    example("Print the reference", "msr-vmm config"),
                    example(
                        "Print the JSON Schema, for an editor",
                        "msr-vmm config --schema",
                    ),
                ]
            }
        }
        "import" => {
            &const {
                [example(
                    "Make a CPU model of a Firecracker CPU template",
                    "msr-vmm import firecracker template.json -o mine.toml",
                )]
            }
        }
        "completions" => {
            &const {
                [example(
                    "Print what bash is to load",
                    "msr-vmm completions bash",
                )]
            }
        }
        "decode" => {
            &const {
                [example(
                    "What the bits of a value mean",
                    "msr-vmm decode IA32_APIC_BASE 0xfee00900",
                )]
            }
        }
        "trace" | "trace-show" => {
            &const {
                [example(
                    "Print the records of a trace",
                    "msr-vmm trace show boot.trace",
                )]
            }
        }
        "trace-record" => {
            &const {
                [example(
                    "Record a guest that runs already, by its process id",
                    "msr-vmm trace record --pid 4242 --output guest.trace",
                )]
            }
        }
        "learn" => {
            &const {
                [example(
                    "Allow what a guest was recorded to use",
                    "msr-vmm learn boot.trace --output learned.toml",
                )]
            }
        }
        "report" => {
            &const {
                [example(
                    "Make a page of a trace",
                    "msr-vmm report boot.trace --output boot.html",
                )]
            }
        }
        "top" => {
            &const {
                [example(
                    "Show what a guest accesses now",
                    "msr-vmm top boot.trace",
                )]
            }
        }
        "sandbox" | "sandbox-show" => {
            &const {
                [example(
                    "What a VM may do in the sandbox",
                    "msr-vmm sandbox show --config vm.toml",
                )]
            }
        }
        "man" => {
            &const {
                [example(
                    "Write the pages to a folder",
                    "msr-vmm man target/man",
                )]
            }
        }
        _ => &[],
    }
}

/// The examples as a help text ends with them.
pub(crate) fn help(command: &str) -> String {
    let lines = of(command).iter().map(|example| {
        let Example { what, command } = example;
        format!("  # {what}\n  {command}")
    });
    format!("Examples:\n{}", lines.collect::<Vec<_>>().join("\n"))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::args::Cli;

    #[test]
    fn every_command_has_an_example_that_parses_as_that_command() {
        let mut command = Cli::command();
        let names: Vec<String> = command
            .get_subcommands()
            .map(|c| c.get_name().to_owned())
            .collect();
        for name in names {
            assert!(!of(&name).is_empty(), "{name} has no example");
            for example in of(&name) {
                let words = example.command.split_whitespace();
                let matches = command.try_get_matches_from_mut(words).unwrap();
                assert_eq!(matches.subcommand_name(), Some(name.as_str()));
            }
        }
    }
}
