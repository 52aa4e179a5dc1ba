//! What CPU models say that KVM itself has to keep: initial values of MSRs, and features that KVM may not offer.

use std::process::Command;

use guest_tests::assets;
use guest_tests::guest::{Folder, Guest, Outcome, TinyKernel};
use iced_x86::code_asm::*;
use libtest_mimic::{Failed, Trial};

use crate::Test;

mod pmu;
mod template;
mod templates;

/// This module's tests.
pub(crate) fn trials() -> Vec<Trial> {
    let tests: [(&str, Test); 8] = [
        (
            "models::an_initial_value_is_there_and_writes_follow_kvms_rules",
            initial,
        ),
        (
            "models::an_initial_value_that_kvm_refuses_is_an_error_or_a_warning_that_names_the_msr",
            refused,
        ),
        (
            "models::features_that_kvm_does_not_offer_are_told_hidden_or_refused",
            unoffered,
        ),
        (
            "models::import_marks_what_this_kvm_does_not_offer",
            import_marks,
        ),
        (
            "models::kvms_performance_counters_count_on_request_or_are_refused_in_words",
            pmu::counters,
        ),
        (
            "models::templates_dumps_and_fingerprints_hold_in_a_guest",
            templates::of_each_shape,
        ),
        (
            "models::soak::the_templates_of_a_directory_hold_in_a_guest",
            templates::of_a_folder,
        ),
        (
            "models::linux_boots_with_a_template_that_sets_its_entry_points",
            template::linux,
        ),
    ];
    tests
        .into_iter()
        .map(|(name, test)| {
            Trial::test(name, test).with_ignored_flag(name.starts_with("models::soak::"))
        })
        .collect()
}

/// `IA32_BIOS_SIGN_ID`, which KVM keeps for every guest, takes from the host alone, and lets the guest write without effect.
const REVISION: u32 = 0x8b;
/// No such MSR exists on any CPU, and KVM has no code for it.
const NOWHERE: u32 = 0x3fff;

/// A kernel that compares an MSR with a value, writes another to it and compares again.
fn compares(msr: u32, value: u64) -> Result<TinyKernel, Failed> {
    let mut kernel = TinyKernel::new()?;
    let mut wrong = kernel.0.create_label();
    for round in 0..2 {
        if round == 1 {
            kernel.0.mov(ecx, msr)?;
            kernel.0.xor(eax, eax)?;
            kernel.0.xor(edx, edx)?;
            kernel.0.wrmsr()?;
        }
        kernel.0.mov(ecx, msr)?;
        kernel.0.rdmsr()?;
        kernel.0.cmp(eax, value as u32 as i32)?;
        kernel.0.jne(wrong)?;
        kernel.0.cmp(edx, (value >> 32) as u32 as i32)?;
        kernel.0.jne(wrong)?;
    }
    kernel.print("as expected\n")?.power_off()?;
    kernel.0.set_label(&mut wrong)?;
    kernel.print("another value\n")?.power_off()?;
    Ok(kernel)
}

/// Runs a tiny kernel with a configuration and more arguments.
fn run(kernel: &mut TinyKernel, config: &str, arguments: &[&str]) -> Result<Outcome, Failed> {
    let folder = Folder::new()?;
    let config = folder.file("config.toml", config)?;
    let guest = arguments
        .iter()
        .fold(Guest::tiny(kernel)?, |guest, argument| {
            guest.argument(*argument)
        });
    Ok(guest.option("--config", config).run()?)
}

fn expect(outcome: &Outcome, status: i32, console: &str, stderr: &[&str]) -> Result<(), Failed> {
    if outcome.status.code() == Some(status)
        && outcome.console.contains(console)
        && stderr.iter().all(|words| outcome.stderr.contains(words))
    {
        return Ok(());
    }
    Err(format!("status {status}, {console:?} and {stderr:?} instead of {outcome:#?}").into())
}

fn initial() -> Result<(), Failed> {
    let value = 0x1234_5678_9abc_def0;
    let config = format!("[[msr.initial]]\nmsr = {REVISION}\nvalue = \"{value:#x}\"\n");
    let outcome = run(&mut compares(REVISION, value)?, &config, &[])?;
    expect(&outcome, 0, "as expected", &[])?;
    // Half of the bits, over those of a value that is there already.
    let config =
        format!("[[msr.initial]]\nmsr = {REVISION}\nvalue = 5\nmask = \"0xffff_ffff_0000_000f\"\n");
    let outcome = run(&mut compares(REVISION, 5)?, &config, &[])?;
    expect(&outcome, 0, "another value", &[])
}

fn refused() -> Result<(), Failed> {
    let mut kernel = TinyKernel::new()?;
    kernel.print("up\n")?.power_off()?;
    let config = format!("[[msr.initial]]\nmsr = {NOWHERE}\nvalue = 1\n");
    let outcome = run(&mut kernel, &config, &[])?;
    expect(&outcome, 2, "", &["does not take", "MSR 0x3fff = 0x1"])?;
    let warn = config + "refused = \"warn\"\n";
    let outcome = run(&mut kernel, &warn, &[])?;
    expect(&outcome, 0, "up", &["WARN", "MSR 0x3fff = 0x1"])?;
    let outcome = run(&mut kernel, &warn, &["--strict"])?;
    expect(&outcome, 2, "", &["does not take", "MSR 0x3fff = 0x1"])?;
    let part = warn + "mask = 1\n";
    let outcome = run(&mut kernel, &part, &[])?;
    expect(&outcome, 0, "up", &["MSR 0x3fff, which it does not have"])
}

/// Features that no KVM offers any more, and a component of the XSAVE area that no CPU has.
const UNOFFERED: &str = r#"
    [cpu]
    show = ["lwp", "avx512_4vnniw", "aperfmperf"]
    [[cpu.leaf]]
    leaf = "0xd"
    eax = "0b1_xxxx_xxxx_xxxx_xxxx"
    [[msr.device]]
    type = "aperfmperf"
"#;

fn unoffered() -> Result<(), Failed> {
    let mut kernel = TinyKernel::new()?;
    kernel.print("up\n")?.power_off()?;
    let told = [
        "lwp: no device answers MSR 0xc0000105",
        "avx512_4vnniw: a program that relies on them gets #UD",
        "CPUID 0xd.0 EAX bit 16: a kernel enables their state by XSETBV or IA32_XSS, which is #GP",
    ];
    let outcome = run(&mut kernel, UNOFFERED, &[])?;
    expect(&outcome, 0, "up", &told)?;
    if outcome.stderr.contains("aperfmperf") {
        return Err(format!("a device answers for aperfmperf: {}", outcome.stderr).into());
    }
    let outcome = run(&mut kernel, UNOFFERED, &["--strict"])?;
    expect(&outcome, 2, "", &told)?;
    let hidden = UNOFFERED.replacen("[cpu]", "[cpu]\nunoffered = \"hide\"", 1);
    let outcome = run(&mut kernel, &hidden, &[])?;
    expect(
        &outcome,
        0,
        "up",
        &["which are hidden: avx512_4vnniw, CPUID 0xd.0 EAX bit 16, lwp"],
    )
}

fn import_marks() -> Result<(), Failed> {
    let folder = Folder::new()?;
    let template = folder.file(
        "template.json",
        r#"{"cpuid_modifiers": [{"leaf": "0x7", "subleaf": "0x0", "flags": 1, "modifiers": [
            {"register": "edx", "bitmap": "0b1xx"}]}],
          "msr_modifiers": [{"addr": "0x174", "bitmap": "0b0"}]}"#,
    )?;
    let import = |more: &[&str]| -> Result<(Option<i32>, String), Failed> {
        let output = Command::new(assets::msr_vmm()?)
            .args(["import", "firecracker"])
            .arg(&template)
            .args(more)
            .output()?;
        let text = [output.stdout, output.stderr].concat();
        Ok((
            output.status.code(),
            String::from_utf8_lossy(&text).into_owned(),
        ))
    };
    let mark = "This host's KVM does not offer avx512_4vnniw";
    let (status, text) = import(&[])?;
    if status != Some(0) || !text.contains(&format!("# {mark}")) {
        return Err(format!("{status:?}: {text}").into());
    }
    let (status, text) = import(&["--strict"])?;
    if status != Some(2) || !text.contains(mark) {
        return Err(format!("strict, {status:?}: {text}").into());
    }
    Ok(())
}
