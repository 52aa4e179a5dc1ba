//! What `msr-vmm ctl` says without a VM.

use std::process::{Command, Output};

fn ctl(arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_msr-vmm"));
    let output: Output = command
        .arg("ctl")
        .args(arguments)
        .output()
        .expect("msr-vmm runs");
    let stderr = String::from_utf8(output.stderr).expect("text");
    (output.status.code(), stderr)
}

#[test]
fn what_is_no_command_is_answered_with_the_commands_and_the_nearest() {
    let (status, stderr) = ctl(&["vm.sock", "pasue"]);
    assert_eq!(status, Some(2), "{stderr}");
    assert!(
        stderr.contains("there is no command `pasue`; did you mean `pause`? there are"),
        "{stderr}"
    );
    for command in [
        "status",
        "power-button",
        "filter",
        "device",
        "trace",
        "snapshot",
        "wait",
    ] {
        assert!(stderr.contains(command), "no {command} in {stderr}");
    }
    let (status, stderr) = ctl(&["vm.sock", "zzz", "--yyy"]);
    assert_eq!(status, Some(2), "{stderr}");
    assert!(
        stderr.contains("there is no command `zzz`; there are status, pause"),
        "{stderr}"
    );
    let (status, stderr) = ctl(&["vm.sock", "trace", "stpo"]);
    assert_eq!(status, Some(2), "{stderr}");
    assert!(
        stderr.contains("a similar subcommand exists: 'stop'"),
        "{stderr}"
    );
    let (status, stderr) = ctl(&["vm.sock"]);
    assert_eq!(status, Some(2), "{stderr}");
    assert!(stderr.contains("power-button"), "{stderr}");
}
