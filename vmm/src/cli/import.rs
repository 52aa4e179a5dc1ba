//! `msr-vmm import`.

use std::path::PathBuf;

use clap::{Args, ValueEnum, ValueHint};
use kvm_ioctls::Kvm;
use msr_bus::{DeviceModel, Document, Topology, VcpuId};

use crate::builder::create_vm;
use crate::cli::plan::plan;
use crate::cli::{self, Failure};
use crate::config::{Config, LoadedConfig};
use crate::cpu::{ByEffect, Cpuid, HostCpu, OnUnoffered};
use crate::models::ModelFile;
use crate::models::import::{bochs, firecracker};
use crate::vm::VmError;
use msr_kvm::{OnRefusal, RefusedMsrs};

/// What `msr-vmm import` takes.
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// What the file is.
    #[arg(value_enum)]
    pub format: Format,
    /// The file; - reads standard input.
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    /// Write the model to this file instead of standard output.
    #[arg(short, long, value_name = "MODEL", value_hint = ValueHint::FilePath)]
    pub output: Option<PathBuf>,
    /// Refuse a model of which this host's KVM cannot give everything.
    #[arg(long)]
    pub strict: bool,
}

/// A format that models are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A custom CPU template of Firecracker's, or a dump or fingerprint of its cpu-template-helper (JSON).
    Firecracker,
    /// A `msrs.def` of Bochs'.
    Bochs,
}

/// Prints the model that a file of another program's describes, with what this host's KVM cannot give of it.
pub(crate) fn import(args: &ImportArgs, models: &[DeviceModel]) -> Result<(), Failure> {
    let file = Document::read(&args.file).map_err(Failure::usage)?;
    let text = file.text();
    let wrong = |error: &dyn std::fmt::Display| Failure::usage(format!("{}: {error}", file.name()));
    let mut imported = match args.format {
        Format::Firecracker => firecracker::import(text).map_err(|error| wrong(&error))?,
        Format::Bochs => bochs::import(text).map_err(|error| wrong(&error))?,
    };
    match Kvm::new() {
        Ok(kvm) => {
            let lacking = lacking(&kvm, &imported.model, models)?;
            if args.strict && !lacking.is_empty() {
                return Err(wrong(&lacking.join("; ")));
            }
            imported.notes.extend(lacking);
        }
        Err(error) if args.strict => return Err(Failure::fault(VmError::Open(error))),
        Err(error) => imported.notes.push(format!(
            "Nobody has asked a KVM whether it offers all of this: {}.",
            VmError::Open(error)
        )),
    }
    match &args.output {
        None => cli::print(&imported),
        Some(path) => std::fs::write(path, imported.to_string())
            .map_err(|error| Failure::cannot_write(path, &error)),
    }
}

/// What of the model this host's KVM cannot give, found out with a VM of one vCPU.
fn lacking(kvm: &Kvm, model: &ModelFile, models: &[DeviceModel]) -> Result<Vec<String>, Failure> {
    let mut config = Config {
        cpu: model.cpu.clone(),
        msr: model.msr.clone(),
        ..Config::default()
    };
    config.cpu.unoffered = OnUnoffered::Hide;
    for initial in &mut config.msr.initial {
        initial.refused = OnRefusal::Warn;
    }
    let plan = plan(
        &LoadedConfig {
            config: config.clone(),
            file: None,
        },
        models,
    )?;
    let ask = || -> Result<Vec<String>, VmError> {
        let vm = create_vm(kvm)?;
        vm.create_irq_chip()
            .map_err(VmError::kvm("KVM_CREATE_IRQCHIP"))?;
        let vcpu = vm.create_vcpu(0).map_err(VmError::kvm("KVM_CREATE_VCPU"))?;
        let host = HostCpu::query(kvm, &vcpu)?;
        let has_msr = |index| plan.has_msr(index);
        let cpuid = Cpuid::new(&host, &config.cpu, Topology::flat(1), &has_msr)?;
        vcpu.set_cpuid2(&cpuid.for_vcpu(VcpuId(0)))
            .map_err(VmError::kvm("KVM_SET_CPUID2"))?;
        let refused = plan.set_initial(&vcpu)?;
        let mut lacking = Vec::new();
        for line in ByEffect(cpuid.unoffered()).lines() {
            lacking.push(format!("This host's KVM does not offer {line}."));
        }
        if !refused.is_empty() {
            let refused = RefusedMsrs(&refused);
            lacking.push(format!("This host's KVM does not take {refused}."));
        }
        Ok(lacking)
    };
    ask().map_err(Failure::fault)
}
