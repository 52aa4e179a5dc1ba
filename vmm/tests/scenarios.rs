//! What is wrong with scenarios is said where they are loaded, with the place.

use std::path::PathBuf;
use std::process::{Command, Output};

const DEVICES: &str = "model = \"icelake-server\"
[[msr.device]]
type = \"thermal\"
source = \"constant\"
[[msr.device]]
type = \"scratch\"
msr = 0x3f00
";

fn msr_vmm(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_msr-vmm"));
    command.args(arguments).output().expect("msr-vmm runs")
}

struct File(PathBuf);

impl File {
    fn new(test: &str, scenarios: &str) -> Self {
        let name = format!("msr-vmm-scenarios-{test}-{}.toml", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, format!("{DEVICES}{scenarios}")).expect("a temporary file");
        Self(path)
    }

    fn print_config(&self) -> Output {
        msr_vmm(&[
            "run",
            "--config",
            self.0.to_str().expect("UTF-8"),
            "--print-config",
        ])
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn a_scenario_that_cannot_be_is_refused_with_its_place_and_words() {
    let scenario =
        |step: &str| format!("[[msr.scenario]]\nname = \"s\"\n[[msr.scenario.step]]\n{step}\n");
    let step = |step: &str| scenario(step);
    // Lines 1 to 7 are the devices', 8 and 9 the scenario's, 10 the step's; its first key is in line 11.
    for (text, place, words) in [
        (
            step("set.termal.celsius = 95"),
            ":11:",
            "set: there is no MSR device `termal`; did you mean `thermal`?",
        ),
        (
            step("set.thermal.celsius = 300"),
            ":11:",
            "celsius: 300 is not between -100 and 200 degrees Celsius",
        ),
        (
            step("set.thermal.tjmax = 90"),
            ":11:",
            "`tjmax` cannot change while the guest runs; these can: ",
        ),
        (
            step("set.thermal.celsus = 90"),
            ":11:",
            "`celsus` cannot change while the guest runs; these can: ",
        ),
        (
            step("set.thermal.celsius = \"hot\""),
            ":11:",
            "`celsius` is the string \"hot\"; it takes a number",
        ),
        (
            step("set.thermal.idle_celsius = 50"),
            ":11:",
            "idle_celsius: it counts with source = \"model\"; set that too",
        ),
        (
            step("wait = \"1s\""),
            ":10:",
            "it does nothing; it needs `set`, `write` or `do`",
        ),
        (
            step("wait = \"soon\"\ndo = \"stop\""),
            ":11:",
            "`soon` is no span of time",
        ),
        (
            step("do = \"powerbutton\""),
            ":11:",
            "did you mean \"power-button\"?",
        ),
        (
            step("after = \"\"\ndo = \"stop\""),
            ":11:",
            "after: it is a text of 1 to 256 bytes within one line",
        ),
        (
            step("accesses = { msr = \"0x10-0x11\" }\ndo = \"stop\""),
            ":11:",
            "accesses.msr: 0x10-0x11 is a range: name one MSR",
        ),
        (
            step("accesses = { msr = 1, count = 0 }\ndo = \"stop\""),
            ":11:",
            "accesses.count: it is 0, and counts from 1",
        ),
        (
            step("write = { msr = 0x3f00, value = 1, vcpu = 1 }"),
            ":11:",
            "write.vcpu: there is no vCPU 1; they are 0 to 0",
        ),
        (
            step("whait = \"1s\"\ndo = \"stop\""),
            ":11:",
            "there is no key `whait` here; did you mean `wait`?",
        ),
        (
            "[[msr.scenario]]\nname = \"s\"\n".to_owned(),
            ":8:",
            "it has 0 steps, and can have 1 to 1024",
        ),
        (
            "[[msr.scenario]]\nrepeat = 0\n[[msr.scenario.step]]\ndo = \"pause\"\n".to_owned(),
            ":9:",
            "repeat: none of its steps waits",
        ),
        (
            step("do = \"pause\"").repeat(17),
            ":8:",
            "17 scenarios are too many, a VM runs 16 at a time",
        ),
    ] {
        let output = File::new("wrong", &text).print_config();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{text}: {stderr}");
        assert!(stderr.contains(words), "{text}: no {words:?} in {stderr}");
        assert!(
            stderr.contains(&format!(".toml{place}")),
            "{text}: no {place} in {stderr}"
        );
    }
}

/// A key that counts after another is set is right in that order, and not in the other.
#[test]
fn steps_are_tried_in_their_order() {
    let steps = |first: &str, second: &str| {
        format!(
            "[[msr.scenario]]\n[[msr.scenario.step]]\n{first}\n[[msr.scenario.step]]\n{second}\n"
        )
    };
    let (source, idle) = (
        "set.thermal.source = \"model\"",
        "set.thermal.idle_celsius = 50",
    );
    let output = File::new("order", &steps(source, idle)).print_config();
    assert!(output.status.success(), "{output:?}");
    let output = File::new("disorder", &steps(idle, source)).print_config();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
}

#[test]
fn what_is_printed_of_a_scenario_is_the_same_scenario() {
    let text = "[[msr.scenario]]
repeat = 3
seed = 5
[[msr.scenario.step]]
at = \"1.5s\"
after = \"login:\"
accesses = { msr = \"IA32_THERM_STATUS\", count = 2 }
wait = \"1m\"
jitter = \"250ms\"
set.thermal.celsius = 95
set.scratch.now = 7
write = { msr = 0x3f00, value = \"0xffff_ffff_ffff_ffff\" }
do = \"power-button\"
";
    let output = File::new("first", text).print_config();
    assert!(output.status.success(), "{output:?}");
    let printed = String::from_utf8(output.stdout).expect("text");
    for line in [
        "at = \"1500ms\"",
        "wait = \"60s\"",
        "do = \"power-button\"",
        "celsius = 95",
    ] {
        assert!(printed.contains(line), "no {line} in {printed}");
    }
    let path = std::env::temp_dir().join(format!(
        "msr-vmm-scenarios-again-{}.toml",
        std::process::id()
    ));
    std::fs::write(&path, &printed).expect("a temporary file");
    let again = msr_vmm(&[
        "run",
        "--config",
        path.to_str().expect("UTF-8"),
        "--print-config",
    ]);
    std::fs::remove_file(&path).expect("it is there");
    assert_eq!(String::from_utf8(again.stdout).expect("text"), printed);
}

#[test]
fn a_vm_with_scenarios_has_in_the_sandbox_what_they_may_do() {
    let file = File::new(
        "sandbox",
        "[[msr.scenario]]\n[[msr.scenario.step]]\ndo = \"stop\"\n",
    );
    let path = file.0.to_str().expect("UTF-8");
    let output = msr_vmm(&["sandbox", "show", "--config", path]);
    let text = String::from_utf8(output.stdout).expect("text");
    for call in ["KVM_SIGNAL_MSI", "KVM_NMI", "KVM_SET_MSRS"] {
        assert!(text.contains(call), "no {call} in {text}");
    }
}
