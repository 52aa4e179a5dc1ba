//! From claims to filter rules: what devices answer must be denied in the kernel, or KVM never asks.

use msr_filter::{FilterSpec, Rule, Verdict};

use crate::{Access, MsrBus, MsrRange};

/// A rule lets the kernel answer what a device claims.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "rule {number} allows MSR {range} in the kernel, but device `{device}` claims {claim}: take the MSR out of the \
     rule or out of the device",
    number = rule + 1
)]
pub struct Contradiction {
    /// The rule's position, from 0. The message counts from 1.
    pub rule: usize,
    /// The rule's range.
    pub range: MsrRange,
    /// The device.
    pub device: String,
    /// The device's range.
    pub claim: MsrRange,
}

impl MsrBus {
    /// A rule for each claim that denies reads and writes in the kernel, in ascending order.
    pub fn claim_rules(&self) -> impl Iterator<Item = Rule> {
        self.claims()
            .map(|(claim, _)| Rule::new(claim, Access::all(), Verdict::Deny))
    }

    /// Checks that none of `rules` lets the kernel answer what a device claims.
    ///
    /// # Errors
    ///
    /// [`Contradiction`], for the first rule that does.
    pub fn check_rules(&self, rules: &[Rule]) -> Result<(), Contradiction> {
        let allows = (0..)
            .zip(rules)
            .filter(|(_, rule)| rule.verdict == Verdict::Allow);
        for (number, Rule { range, .. }) in allows {
            let claimed = self
                .claims()
                .find(|(claim, _)| claim.intersection(*range).is_some());
            if let Some((claim, device)) = claimed {
                return Err(Contradiction {
                    rule: number,
                    range: *range,
                    device: device.name().to_owned(),
                    claim,
                });
            }
        }
        Ok(())
    }

    /// What the kernel may answer: not what devices claim, and for the rest what `rules` say.
    ///
    /// # Errors
    ///
    /// [`Contradiction`] where a rule allows what a device claims.
    pub fn filter_spec(&self, rules: &FilterSpec) -> Result<FilterSpec, Contradiction> {
        self.check_rules(&rules.rules)?;
        let mut spec = FilterSpec::new(rules.default);
        spec.rules.extend(self.claim_rules());
        spec.rules.extend_from_slice(&rules.rules);
        Ok(spec)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::scratch;
    use crate::testing::context;
    use crate::{DeviceConfig, DeviceModel, Model, Topology};

    fn bus() -> MsrBus {
        let device = |name: &str, msr: u32| {
            let config: DeviceConfig = toml::from_str(&format!(
                "type = '{}'\nname = '{name}'\nmsr = {msr}",
                <scratch::Scratch as Model>::TYPE
            ))
            .unwrap();
            config
                .build(DeviceModel::all(), &context(Topology::flat(1)))
                .unwrap()
        };
        MsrBus::builder()
            .device(device("a", 0x400))
            .device(device("b", 0x300))
            .build()
            .unwrap()
    }

    #[test]
    fn claims_are_denied_before_any_rule_of_the_user() {
        let rule = Rule::new(0x10, Access::READ, Verdict::Deny);
        let spec = bus()
            .filter_spec(&FilterSpec::new(Verdict::Allow).rule(rule))
            .unwrap();
        let deny = |msr: u32| Rule::new(msr, Access::all(), Verdict::Deny);
        assert_eq!(spec.default, Verdict::Allow);
        assert_eq!(spec.rules, [deny(0x300), deny(0x400), rule]);
    }

    #[test]
    fn a_rule_that_allows_a_claim_is_an_error_that_names_both() {
        let range = MsrRange::new(0x3f0, 0x40f).unwrap();
        let rules = [
            Rule::new(0x400, Access::all(), Verdict::Deny),
            Rule::new(range, Access::READ, Verdict::Allow),
        ];
        let error = bus().check_rules(&rules).unwrap_err();
        assert_eq!(
            error,
            Contradiction {
                rule: 1,
                range,
                device: "a".into(),
                claim: MsrRange::single(0x400),
            }
        );
        assert!(
            error
                .to_string()
                .starts_with("rule 2 allows MSR 0x3f0-0x40f")
        );
        assert_eq!(bus().check_rules(&rules[..1]), Ok(()));
    }
}
