//! AMD's P-states (PPR for family 19h model 01h, MSRC001_0061 to MSRC001_006B).

use std::sync::atomic::{AtomicU64, Ordering};

use msr_filter::MsrRange;
use serde::{Deserialize, Serialize};

use super::Config;
use super::config::Ratios;
use crate::{DeviceState, GeneralProtection, MsrAccess, PerScope, RestoreError, Scope, Topology};

const P_STATE_LIMIT: u32 = 0xc001_0061; // PStateCurLim
const P_STATE_CONTROL: u32 = 0xc001_0062; // PStateCtl
const P_STATE_STATUS: u32 = 0xc001_0063; // PStateStat
const P_STATE_FIRST: u32 = 0xc001_0064; // PStateDef0
const P_STATE_LAST: u32 = 0xc001_006b; // PStateDef7

/// The version of [`State`].
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    /// `PStateCtl` of each thread.
    amd_p_state: Vec<u64>,
}

#[derive(Debug)]
pub(super) struct Amd {
    /// `PStateDef`; 0 where there is no such P-state.
    definitions: [u64; 8],
    /// The number of the last P-state.
    last: u64,
    /// The frequency of each P-state, in MHz.
    mhz: Vec<u32>,
    /// The first P-state that the platform allows now.
    limit: AtomicU64,
    threads_per_core: u32,
    /// What each thread asked for.
    control: PerScope<AtomicU64>,
}

impl Amd {
    pub(super) fn new(config: &Config, topology: &Topology) -> Result<Self, String> {
        config.refuse(
            "AMD",
            &[
                ("turbo_mhz", config.turbo_mhz.is_some()),
                ("turbo_cores", config.turbo_cores.is_some()),
                ("cpuid_faulting", config.cpuid_faulting),
            ],
        )?;
        let mut states = config
            .p_states_mhz
            .clone()
            .unwrap_or_else(|| vec![config.base_mhz, config.min_mhz]);
        states.dedup();
        let (key, count) = ("p_states_mhz", states.len());
        if count == 0 || count > 8 {
            return Err(format!("{key}: {count} P-states are not 1 to 8"));
        }
        if states[0] != config.base_mhz || states.windows(2).any(|pair| pair[0] < pair[1]) {
            return Err(format!(
                "{key}: the P-states begin with the {} MHz of `base_mhz` and descend",
                config.base_mhz
            ));
        }
        let mut definitions = [0; 8];
        for (definition, mhz) in definitions.iter_mut().zip(&states) {
            *definition = p_state(Ratios::of(25).ratio(key, *mhz)?);
        }
        let amd = Self {
            mhz: states,
            limit: AtomicU64::new(0),
            definitions,
            last: count as u64 - 1,
            threads_per_core: topology.threads,
            control: PerScope::new(Scope::Thread, topology, |_| AtomicU64::new(0)),
        };
        amd.set_limit(config)?;
        Ok(amd)
    }

    /// Takes over the limit that `config` has.
    pub(super) fn set_limit(&self, config: &Config) -> Result<(), String> {
        let limit = match config.limit_mhz {
            None => 0,
            Some(limit) => {
                let mut states = self.mhz.iter();
                let state = states.position(|mhz| *mhz == limit).ok_or_else(|| {
                    let mhz: Vec<String> = self.mhz.iter().map(u32::to_string).collect();
                    format!(
                        "limit_mhz: {limit} MHz is no P-state's frequency; those are {} MHz",
                        mhz.join(", ")
                    )
                })?;
                // At most 8.
                state as u64
            }
        };
        self.limit.store(limit, Ordering::Relaxed);
        Ok(())
    }

    pub(super) fn claims(&self) -> Vec<MsrRange> {
        let range = MsrRange::new(P_STATE_LIMIT, P_STATE_LAST);
        vec![range.expect("the first is lower than the last")]
    }

    pub(super) fn read(&self, access: &MsrAccess<'_>) -> Result<u64, GeneralProtection> {
        let location = access.cpu.location();
        Ok(match access.index {
            // The first P-state allowed now in 2:0, and the last in 6:4.
            P_STATE_LIMIT => self.last << 4 | self.limit.load(Ordering::Relaxed),
            P_STATE_CONTROL => self.control.at(location).load(Ordering::Relaxed),
            // The core runs in the fastest P-state that a thread of it asks for and that is allowed.
            P_STATE_STATUS => {
                let core = (location.core * self.threads_per_core) as usize;
                let threads = self.control.iter().skip(core);
                let threads = threads.take(self.threads_per_core as usize);
                let asked = threads.map(|thread| thread.load(Ordering::Relaxed));
                asked
                    .min()
                    .unwrap_or(0)
                    .max(self.limit.load(Ordering::Relaxed))
            }
            P_STATE_FIRST..=P_STATE_LAST => {
                self.definitions[(access.index - P_STATE_FIRST) as usize]
            }
            _ => return Err(GeneralProtection),
        })
    }

    pub(super) fn write(
        &self,
        access: &MsrAccess<'_>,
        value: u64,
    ) -> Result<(), GeneralProtection> {
        // Firmware defines the P-states; a guest that redefined them would find nothing changed.
        if access.index != P_STATE_CONTROL || value > 7 {
            return Err(GeneralProtection);
        }
        let control = self.control.at(access.cpu.location());
        control.store(value.min(self.last), Ordering::Relaxed);
        Ok(())
    }

    pub(super) fn save(&self) -> DeviceState {
        let asked = self.control.iter().map(|c| c.load(Ordering::Relaxed));
        let amd_p_state = asked.collect();
        DeviceState::encode(VERSION, &State { amd_p_state })
    }

    pub(super) fn restore(&self, state: &DeviceState) -> Result<(), RestoreError> {
        let State { amd_p_state } = state.decode(VERSION)?;
        if amd_p_state.len() != self.control.len() || amd_p_state.iter().any(|p| *p > self.last) {
            return Err(RestoreError::Mismatch(
                "it has other vCPUs or other P-states".into(),
            ));
        }
        for (control, value) in self.control.iter().zip(amd_p_state) {
            control.store(value, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// `PStateDef` of a frequency of `fid` times 25 MHz: enabled (63), the divisor 1 (8 eighths in 13:8), the
/// multiplier in 7:0. The voltage and current fields, which nothing here has, are 0.
fn p_state(fid: u64) -> u64 {
    1 << 63 | 8 << 8 | fid
}
