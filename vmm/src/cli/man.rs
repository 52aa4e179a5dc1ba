//! The man pages: one for each command, and `msr-vmm.toml(5)`.

use std::fs;
use std::io;
use std::path::Path;

use clap::{Command, CommandFactory};
use clap_mangen::Man;
use clap_mangen::roff::{Inline, Roff, bold, roman};
use msr_bus::DeviceModel;

use crate::cli::Failure;
use crate::cli::args::Cli;
use crate::cli::examples;
use crate::config::reference::{self, Section};

/// Writes the pages to `folder`, which is made if it is missing.
pub(crate) fn write(folder: &Path, models: &[DeviceModel]) -> Result<(), Failure> {
    fs::create_dir_all(folder).map_err(|error| Failure::cannot_write(folder, &error))?;
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    let mut subcommands: Vec<Command> = Vec::new();
    collect(&command, &mut subcommands);
    let names: Vec<String> = subcommands
        .iter()
        .filter_map(|c| c.get_display_name().map(str::to_owned))
        .collect();
    let commands = std::iter::once(command).chain(subcommands);
    let mut pages = vec![("msr-vmm.toml.5".to_owned(), configuration(models))];
    for command in commands {
        let file = format!("{}.1", command.get_display_name().unwrap_or("msr-vmm"));
        pages.push((file, page(command, &names)));
    }
    for (file, page) in pages {
        let path = folder.join(file);
        let page = page.map_err(|error| Failure::cannot_write(&path, &error))?;
        fs::write(&path, page).map_err(|error| Failure::cannot_write(&path, &error))?;
    }
    Ok(())
}

/// The subcommands of a command, those of each after it.
fn collect(command: &Command, subcommands: &mut Vec<Command>) {
    for subcommand in command.get_subcommands() {
        subcommands.push(subcommand.clone());
        collect(subcommand, subcommands);
    }
}

/// A command's page.
fn page(command: Command, all: &[String]) -> io::Result<Vec<u8>> {
    let name = command.get_name().to_owned();
    let title = command.get_display_name().unwrap_or(&name).to_owned();
    let has_subcommands = command.has_subcommands();
    // The examples have a section of their own.
    let man = Man::new(command.after_help("").after_long_help("")).manual("msr-vmm");
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if has_subcommands {
        man.render_subcommands_section(&mut page)?;
    }
    let mut roff = Roff::new();
    roff.control("SH", ["EXIT STATUS"]);
    for (status, meaning) in [
        (
            "0",
            "The command did its work; for run, the guest switched itself off or rebooted.",
        ),
        ("1", "The guest or the host failed, or the VM was stopped."),
        ("2", "The command line or the configuration is wrong."),
    ] {
        item(&mut roff, vec![bold(status)], meaning);
    }
    roff.control("SH", ["EXAMPLES"]);
    for example in examples::of(title.strip_prefix("msr-vmm-").unwrap_or(&name)) {
        roff.control("PP", []);
        roff.text([roman(format!("{}:", example.what))]);
        code(&mut roff, example.command);
    }
    files(&mut roff);
    let pages = all
        .iter()
        .map(|page| (page.as_str(), "1"))
        .chain([("msr-vmm", "1"), ("msr-vmm.toml", "5")])
        .filter(|(page, _)| *page != title);
    see_also(&mut roff, pages);
    roff.to_writer(&mut page)?;
    Ok(page)
}

/// The page of the configuration file.
fn configuration(models: &[DeviceModel]) -> io::Result<Vec<u8>> {
    let mut roff = Roff::new();
    let source = format!("msr-vmm {}", env!("CARGO_PKG_VERSION"));
    roff.control("TH", ["msr-vmm.toml", "5", "", &source, "msr-vmm"]);
    roff.control("SH", ["NAME"]);
    roff.text([roman(
        "msr-vmm.toml - the configuration of a virtual machine",
    )]);
    roff.control("SH", ["DESCRIPTION"]);
    roff.text([roman(
        "A TOML file that msr-vmm run, filter, explain and check read. Every key is optional unless it says otherwise, and \
         what the command line says wins. An unknown key is an error. Relative paths start in the folder of the file.",
    )]);
    roff.control("PP", []);
    roff.text([roman(
        "An MSR is written by its index (0x611, as a number or a string), by its name in the manuals (MSR_PKG_ENERGY_STATUS), or \
         as a range of either (\"0x600-0x63f\"). A 64-bit value that TOML's integers do not hold is written as a string in \
         hexadecimal.",
    )]);
    let (devices, tables): (Vec<Section>, Vec<Section>) = reference::sections(models)
        .into_iter()
        .partition(|section| section.header.contains(" type ="));
    roff.control("SH", ["KEYS"]);
    tables.iter().for_each(|table| section(&mut roff, table));
    roff.control("SH", ["MSR DEVICES"]);
    devices.iter().for_each(|device| section(&mut roff, device));
    roff.control("SH", ["EXAMPLES"]);
    roff.text([roman(
        "An Ice Lake server with two CPUs, whose energy counters show other watts than the model's:",
    )]);
    code(&mut roff, EXAMPLE);
    files(&mut roff);
    see_also(
        &mut roff,
        [
            ("msr-vmm", "1"),
            ("msr-vmm-run", "1"),
            ("msr-vmm-config", "1"),
        ]
        .into_iter(),
    );
    let mut page = Vec::new();
    roff.to_writer(&mut page)?;
    Ok(page)
}

/// The example of the page of the configuration file.
const EXAMPLE: &str = r#"model = "icelake-server"

[vm]
kernel = "vmlinuz"
initrd = "initrd.img"
cpus = 2
memory = "1G"

[[msr.device]]
type = "rapl"
idle_watts = 1.5
busy_watts = 9.0"#;

fn section(roff: &mut Roff, section: &Section) {
    let header = if section.header.is_empty() {
        "At the top of the file"
    } else {
        &section.header
    };
    roff.control("SS", [header]);
    if !section.description.is_empty() {
        roff.text([roman(section.description.as_str())]);
    }
    for key in &section.keys {
        let mut kind = format!(": {}", key.kind);
        if key.required {
            kind += "; required";
        }
        if let Some(default) = key.written_default() {
            kind += &format!("; default {default}");
        }
        item(
            roff,
            vec![bold(key.key.as_str()), roman(kind)],
            &key.description,
        );
    }
}

fn files(roff: &mut Roff) {
    roff.control("SH", ["FILES"]);
    for (file, meaning) in [
        (
            "/dev/kvm",
            "KVM. Whoever starts guests needs read and write access; distributions give it to the group kvm.",
        ),
        (
            "/dev/cpu/N/msr",
            "The host's MSRs, which the device model passthrough reads; the msr module makes it, and reading it needs root.",
        ),
        (
            "/sys/class/powercap",
            "The host's energy counters, for the device model rapl with source = \"powercap\".",
        ),
    ] {
        item(roff, vec![bold(file)], meaning);
    }
}

fn see_also<'a>(roff: &mut Roff, pages: impl Iterator<Item = (&'a str, &'a str)>) {
    roff.control("SH", ["SEE ALSO"]);
    let pages: Vec<String> = pages
        .map(|(page, section)| format!("{page}({section})"))
        .collect();
    roff.text([roman(pages.join(", "))]);
}

fn item(roff: &mut Roff, term: Vec<Inline>, text: &str) {
    roff.control("TP", []);
    roff.text(term);
    roff.text([roman(text)]);
}

fn code(roff: &mut Roff, text: &str) {
    roff.control("PP", []);
    roff.control("nf", []);
    roff.control("RS", ["4"]);
    for line in text.lines() {
        roff.text([roman(line)]);
    }
    roff.control("RE", []);
    roff.control("fi", []);
}
