//! Runs a static executable in the outer VM, with /dev/kvm there, and exits with its status:
//!
//! ```text
//! cargo run -p guest-tests --bin run-nested -- [--file GUEST=HOST]... PROGRAM [ARGUMENT]...
//! ```
//!
//! PROGRAM is a path on the host, packed as `/bin/<its name>`. What the tests use is packed too:
//! see `guest_tests::assets`.

use std::path::Path;
use std::process::ExitCode;

use guest_tests::assets;
use guest_tests::nested::outer::OuterVm;
use guest_tests::pack;

const USAGE: &str = "usage: run-nested [--file GUEST=HOST]... PROGRAM [ARGUMENT]...";

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1).peekable();
    let mut files = Vec::new();
    while arguments.next_if_eq("--file").is_some() {
        match arguments
            .next()
            .as_deref()
            .and_then(|pair| pair.split_once('='))
        {
            Some((guest, host)) => files.push((guest.to_owned(), host.to_owned())),
            None => return usage(),
        }
    }
    let Some(program) = arguments.next().filter(|program| !program.starts_with('-')) else {
        return usage();
    };
    match run(&program, arguments.collect(), files) {
        Ok(status) => status.into(),
        Err(error) => {
            eprintln!("run-nested: {error}");
            ExitCode::FAILURE
        }
    }
}

fn usage() -> ExitCode {
    eprintln!("{USAGE}");
    ExitCode::from(2)
}

fn run(
    program: &str,
    arguments: Vec<String>,
    files: Vec<(String, String)>,
) -> Result<u8, Box<dyn std::error::Error>> {
    let name = Path::new(program)
        .file_name()
        .ok_or(USAGE)?
        .to_string_lossy();
    let guest_program = format!("/bin/{name}");
    let mut vm = OuterVm::new(std::iter::once(guest_program.clone()).chain(arguments));
    vm.file(guest_program, program);
    for (guest, host) in files {
        vm.file(guest, host);
    }
    pack::basics(&mut vm)?;
    Ok(vm.run(&assets::outer_kernel()?)?)
}
