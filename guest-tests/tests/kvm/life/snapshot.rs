//! A guest is saved, killed, and carried on by another process.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use guest_tests::assets;
use guest_tests::guest::{Folder, Guest, RestoredGuest, RunningGuest, TinyKernel};
use iced_x86::code_asm::*;
use libtest_mimic::{Failed, Trial};
use msr_vmm::control_socket::{
    Client, Method, MsrParams, MsrResult, SnapshotParams, State, Status, WriteMsrParams,
};

use super::listed;

pub(super) fn trials() -> Vec<Trial> {
    listed!("snapshot":
        a_guest_goes_on_where_it_was_in_another_process,
        a_snapshot_can_be_restored_many_times_at_once,
        a_damaged_snapshot_is_refused_and_named,
        a_guest_goes_on_after_a_snapshot_and_nothing_is_replaced,
        a_vm_in_the_sandbox_is_saved_where_it_may_be_and_carried_on_in_a_sandbox,
    )
}

const COUNTER: u32 = 0x3f00;
const CONFIG: &str = "[[msr.device]]\ntype = \"scratch\"\nmsr = \"0x3f00\"\n";

/// A guest that counts in memory and in LSTAR, writes the count to a scratch register, and stops in a fault if TSC or count
/// run backwards.
fn counting() -> Result<Guest, Failed> {
    const LSTAR: u32 = 0xc000_0082;
    let mut kernel = TinyKernel::new()?;
    let code = kernel.print("up\n")?;
    let (mut again, mut wrong) = (code.0.create_label(), code.0.create_label());
    // RBX: the count; R8: the TSC; memory at 3 MiB: the count again.
    code.0.xor(ebx, ebx)?;
    code.0.xor(r8d, r8d)?;
    code.0.mov(edi, 0x30_0000)?;
    code.0.mov(qword_ptr(rdi), 0)?;
    code.0.set_label(&mut again)?;
    code.0.rdtsc()?;
    code.0.shl(rdx, 32)?;
    code.0.or(rax, rdx)?;
    code.0.cmp(rax, r8)?;
    code.0.jb(wrong)?;
    code.0.mov(r8, rax)?;
    code.0.cmp(rbx, qword_ptr(rdi))?;
    code.0.jne(wrong)?;
    code.0.inc(rbx)?;
    code.0.mov(qword_ptr(rdi), rbx)?;
    code.0.mov(eax, ebx)?;
    code.0.xor(edx, edx)?;
    code.0.mov(ecx, LSTAR)?;
    code.0.wrmsr()?;
    code.0.rdmsr()?;
    code.0.cmp(eax, ebx)?;
    code.0.jne(wrong)?;
    code.0.mov(ecx, COUNTER)?;
    code.0.wrmsr()?;
    code.0.jmp(again)?;
    code.0.set_label(&mut wrong)?;
    code.print("wrong\n")?.triple_fault()?;
    let guest = Guest::tiny(&mut kernel)?;
    let config = guest.folder().file("config.toml", CONFIG)?;
    let socket = guest.folder().path("socket");
    Ok(guest.option("--config", config).option("--control", socket))
}

/// Starts one that may be saved in `folder`.
fn start_saveable(folder: &Folder) -> Result<(RunningGuest, PathBuf), Failed> {
    start(counting()?.option("--snapshots", folder.path("")))
}

fn start(guest: Guest) -> Result<(RunningGuest, PathBuf), Failed> {
    let socket = guest.folder().path("socket");
    let mut running = guest.start()?;
    running.wait_for("up")?;
    Ok((running, socket))
}

fn a_vm_in_the_sandbox_is_saved_where_it_may_be_and_carried_on_in_a_sandbox() -> Result<(), Failed>
{
    let folder = Folder::new()?;
    let saved = folder.path("saved");
    std::fs::create_dir(&saved)?;
    let may_save = [OsStr::new("--snapshots"), saved.as_os_str()];
    let refusal = |client: &mut Client, at: PathBuf| -> Result<String, Failed> {
        let error = save(client, at).err().ok_or("it is saved")?;
        Ok(error.message().unwrap_or_default().to_owned())
    };
    // Without a folder for it nothing is saved, and the option is named.
    let (running, socket) = start(counting()?)?;
    let said = refusal(&mut Client::connect(&socket)?, saved.join("s"))?;
    if !said.contains("--snapshots FOLDER") {
        return Err(said.into());
    }
    running.kill()?;

    let guest = may_save.into_iter().fold(counting()?, Guest::argument);
    let (running, socket) = start(guest)?;
    let mut client = Client::connect(&socket)?;
    let mut from = progress_from(&mut client, 0)?;
    let said = refusal(&mut client, folder.path("elsewhere"))?;
    if !said.contains("in the sandbox") && !said.contains("--snapshots") {
        return Err(said.into());
    }
    client.call(&Method::Pause)?;
    from = from.max(count(&mut client)?);
    save(&mut client, saved.join("0"))?;
    running.kill()?;
    for round in 0..3 {
        let socket = folder.path(&format!("socket{round}"));
        let at = saved.join(round.to_string());
        let mut restored = RestoredGuest::with_options(&at, socket, &may_save)?;
        let mut client = restored.client()?;
        from = progress_from(&mut client, from)?;
        let said = refusal(&mut client, folder.path("elsewhere"))?;
        if !said.contains("--snapshots") {
            return Err(said.into());
        }
        client.call(&Method::Pause)?;
        from = from.max(count(&mut client)?);
        // A name alone is one in that folder.
        save(&mut client, PathBuf::from((round + 1).to_string()))?;
        restored.kill()?;
    }
    let mut left = Vec::new();
    for entry in std::fs::read_dir(&saved)? {
        left.push(entry?.file_name());
    }
    left.sort();
    if left != ["0", "1", "2", "3"] || folder.path("elsewhere").exists() {
        return Err(format!("{left:?} is left behind").into());
    }
    println!("snapshot: four processes in the sandbox counted to {from}");
    Ok(())
}

fn count(client: &mut Client) -> Result<u64, Failed> {
    let params = MsrParams {
        msr: format!("{COUNTER:#x}"),
        vcpu: 0,
    };
    let result: MsrResult = client.ask(&Method::ReadMsr(params))?;
    Ok(result.value.ok_or("#GP")?.0)
}

fn progress_from(client: &mut Client, from: u64) -> Result<u64, Failed> {
    for _ in 0..10_000 {
        let now = count(client)?;
        if now < from {
            return Err(format!("the count went from {from} to {now}").into());
        }
        if now > from + 100 {
            return Ok(now);
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    Err(format!("the guest does not go on from {from}").into())
}

fn save(client: &mut Client, folder: PathBuf) -> Result<(), Failed> {
    client.call(&Method::Snapshot(SnapshotParams { folder }))?;
    Ok(())
}

fn a_guest_goes_on_where_it_was_in_another_process() -> Result<(), Failed> {
    let folder = Folder::new()?;
    let (running, socket) = start_saveable(&folder)?;
    let mut client = Client::connect(&socket)?;
    let mut from = progress_from(&mut client, 0)?;
    client.call(&Method::Pause)?;
    from = from.max(count(&mut client)?);
    save(&mut client, folder.path("0"))?;
    running.kill()?;
    // From snapshot to snapshot, each by another process.
    for round in 0..10 {
        let socket = folder.path(&format!("socket{round}"));
        let mut restored = RestoredGuest::start(&folder.path(&round.to_string()), socket)?;
        let mut client = restored.client()?;
        from = progress_from(&mut client, from)?;
        client.call(&Method::Pause)?;
        from = from.max(count(&mut client)?);
        save(&mut client, folder.path(&(round + 1).to_string()))?;
        let status: Status = client.ask(&Method::Status)?;
        if status.state != State::Paused {
            return Err("the snapshot ended the pause".into());
        }
        restored.kill()?;
    }
    println!("snapshot: ten processes counted to {from}");
    Ok(())
}

fn a_snapshot_can_be_restored_many_times_at_once() -> Result<(), Failed> {
    let folder = Folder::new()?;
    let (running, socket) = start_saveable(&folder)?;
    let mut client = Client::connect(&socket)?;
    progress_from(&mut client, 0)?;
    client.call(&Method::Pause)?;
    let from = count(&mut client)?;
    save(&mut client, folder.path("s"))?;
    running.kill()?;
    let mut clones = (0..16)
        .map(|n| RestoredGuest::start(&folder.path("s"), folder.path(&format!("socket{n}"))))
        .collect::<Result<Vec<_>, _>>()?;
    let mut clients = Vec::new();
    for clone in &mut clones {
        clients.push(clone.client()?);
    }
    for client in &mut clients {
        progress_from(client, from)?;
    }
    // Each has its own memory and devices.
    clients[0].call(&Method::Pause)?;
    let value = msr_bus::U64(1);
    let params = WriteMsrParams {
        msr: format!("{COUNTER:#x}"),
        value,
        vcpu: 0,
    };
    clients[0].call(&Method::WriteMsr(params))?;
    assert_eq!(count(&mut clients[0])?, 1);
    let other = count(&mut clients[1])?;
    progress_from(&mut clients[1], other)?;
    Ok(())
}

fn refused(snapshot: &Path) -> Result<String, Failed> {
    let output = Command::new(assets::msr_vmm()?)
        .arg("restore")
        .arg(snapshot)
        .output()?;
    if output.status.code() != Some(2) || !output.stdout.is_empty() {
        return Err(format!("{output:?}").into());
    }
    Ok(String::from_utf8(output.stderr)?)
}

fn a_damaged_snapshot_is_refused_and_named() -> Result<(), Failed> {
    let folder = Folder::new()?;
    let (running, socket) = start_saveable(&folder)?;
    let mut client = Client::connect(&socket)?;
    client.call(&Method::Pause)?;
    let snapshot = folder.path("s");
    save(&mut client, snapshot.clone())?;
    running.kill()?;
    let state = std::fs::read(snapshot.join("state"))?;
    let with = |bytes: &[u8]| -> Result<String, Failed> {
        std::fs::write(snapshot.join("state"), bytes)?;
        refused(&snapshot)
    };
    // Cut at many places, and a byte changed at as many.
    for place in 0..40 {
        let at = state.len() * place / 40;
        with(&state[..at])?;
        let mut changed = state.clone();
        changed[at] ^= 0x10;
        with(&changed)?;
    }
    let text = String::from_utf8(state.clone())?;
    let version = text.replacen("\"version\":1", "\"version\":9", 1);
    let said = with(version.as_bytes())?;
    if !said.contains("version 9") {
        return Err(said.into());
    }
    // Whole and yet of another CPU: the checksum is right.
    let (_, body) = text.split_once('\n').ok_or("no header")?;
    let body = body.replacen(
        "\"function\":1,\"index\":0,\"flags\":0,\"eax\":",
        "\"function\":1,\"index\":0,\"flags\":0,\"eax\":1",
        1,
    );
    let crc = crc32fast::hash(body.as_bytes());
    let header = format!("{{\"format\":\"msr-vmm snapshot\",\"version\":1,\"crc32\":{crc}}}");
    let said = with(format!("{header}\n{body}").as_bytes())?;
    if !said.contains("CPUID leaf 0x1, 0x0 EAX") {
        return Err(said.into());
    }
    std::fs::write(snapshot.join("state"), &state)?;
    let memory = std::fs::File::options()
        .write(true)
        .open(snapshot.join("memory"))?;
    memory.set_len(4096)?;
    let said = refused(&snapshot)?;
    if !said.contains("it has 4096 bytes") {
        return Err(said.into());
    }
    std::fs::remove_file(snapshot.join("memory"))?;
    refused(&snapshot)?;
    refused(&folder.path("nothing"))?;
    Ok(())
}

fn a_guest_goes_on_after_a_snapshot_and_nothing_is_replaced() -> Result<(), Failed> {
    let folder = Folder::new()?;
    let (running, socket) = start_saveable(&folder)?;
    let mut client = Client::connect(&socket)?;
    let from = progress_from(&mut client, 0)?;
    save(&mut client, folder.path("s"))?;
    let from = progress_from(&mut client, from)?;
    let again = save(&mut client, folder.path("s")).err();
    if !again.is_some_and(|error| {
        error
            .message()
            .unwrap_or_default()
            .contains("there is something already")
    }) {
        return Err("a snapshot was replaced".into());
    }
    let nowhere = save(&mut client, folder.path("no/such/folder"));
    if nowhere.is_ok() {
        return Err("there is no folder to save in".into());
    }
    progress_from(&mut client, from)?;
    let mut left: Vec<_> = std::fs::read_dir(folder.path(""))?.collect::<Result<_, _>>()?;
    left.retain(|entry| entry.file_name() != "s");
    if !left.is_empty() {
        return Err(format!("{left:?} is left behind").into());
    }
    running.kill()?;
    Ok(())
}
