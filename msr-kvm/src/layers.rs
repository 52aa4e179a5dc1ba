//! Filters in layers: a configuration's own rules, the CPU model's that it names, and a profile's.
//!
//! Each layer is a filter of its own, with rules and a default. The kernel may answer an access only where every layer allows it,
//! so that adding a layer narrows what a guest can reach and never widens it. An allow rule that another layer denies is
//! [lost](LostRule), and told.
//!
//! One filter is made of them by cutting the MSR indices where a rule of any layer begins or ends. In each piece every layer has
//! one verdict for each kind of access, and a rule or its default that the verdict comes from.

use std::collections::BTreeSet;

use msr_filter::{Access, FilterConfig, FilterSpec, MsrRange, RangeSummary, Rule, Verdict};
use serde::{Deserialize, Serialize};

use crate::source::RuleSource;

/// A filter that narrows the others of a configuration (`[[msr.layer]]`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "config", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct FilterLayer {
    /// What messages call it, such as "model icelake-server". The configuration's own layer is called "".
    pub name: String,
    /// What it allows.
    pub filter: FilterConfig,
}

impl FilterLayer {
    /// The sources of the rules that [`FilterSpec::from`] makes of the filter, in their order.
    fn sources(&self) -> Vec<RuleSource> {
        let rules = (1..).zip(&self.filter.rules);
        rules
            .flat_map(|(number, rule)| rule.msrs.iter().map(move |_| (number, rule.reason.clone())))
            .map(|(number, reason)| {
                if self.name.is_empty() {
                    RuleSource::User { number, reason }
                } else {
                    let layer = self.name.clone();
                    RuleSource::Layer {
                        layer,
                        number,
                        reason,
                    }
                }
            })
            .collect()
    }
}

/// An allow rule of one layer that another layer denies, in part at least.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LostRule {
    /// The rule that has no effect there.
    pub rule: RuleSource,
    /// The MSRs that it allows and the other denies, by rising index.
    pub msrs: Vec<MsrRange>,
    /// The kinds of access.
    pub access: Access,
    /// The rule or default that denies.
    pub by: RuleSource,
}

impl LostRule {
    /// Whether it is one of the configuration's own, and not a model's or a profile's.
    pub fn is_of_user(&self) -> bool {
        matches!(self.rule, RuleSource::User { .. })
    }
}

/// A piece of a [`LostRule`], in which no rule begins or ends.
#[derive(Debug)]
pub(crate) struct LostPiece {
    rule: RuleSource,
    pub(crate) msrs: MsrRange,
    access: Access,
    by: RuleSource,
}

/// The rules that these are pieces of: what is to be said of several ranges of a rule is said once.
pub(crate) fn lost_rules(pieces: impl Iterator<Item = LostPiece>) -> Vec<LostRule> {
    let mut rules: Vec<LostRule> = Vec::new();
    for LostPiece {
        rule,
        msrs,
        access,
        by,
    } in pieces
    {
        let like =
            |lost: &&mut LostRule| lost.rule == rule && lost.by == by && lost.access == access;
        match rules.iter_mut().find(like) {
            Some(lost) => lost.msrs.push(msrs),
            None => rules.push(LostRule {
                rule,
                msrs: vec![msrs],
                access,
                by,
            }),
        }
    }
    rules
}

/// The filter that several layers make together.
#[derive(Debug)]
pub(crate) struct Combined {
    pub(crate) default: Verdict,
    pub(crate) rules: Vec<Rule>,
    /// Where each of the rules comes from.
    pub(crate) sources: Vec<RuleSource>,
    pub(crate) lost: Vec<LostPiece>,
}

/// A filter with where its rules come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// What messages call it; "" for the user's own rules.
    pub name: String,
    /// What it allows.
    pub spec: FilterSpec,
    /// Where each of its rules comes from.
    pub sources: Vec<RuleSource>,
}

impl From<&FilterLayer> for Layer {
    fn from(layer: &FilterLayer) -> Self {
        Self {
            name: layer.name.clone(),
            spec: FilterSpec::from(&layer.filter),
            sources: layer.sources(),
        }
    }
}

impl Layer {
    /// The user's own rules.
    pub(crate) fn of_rules(spec: FilterSpec) -> Self {
        let numbers = 1..=spec.rules.len();
        let source = |number| RuleSource::User {
            number,
            reason: None,
        };
        Self {
            name: String::new(),
            sources: numbers.map(source).collect(),
            spec,
        }
    }

    /// The layer's verdict on an access of one kind, and where it comes from.
    pub(crate) fn verdict(&self, index: u32, access: Access) -> (Verdict, RuleSource) {
        let rules = self.spec.rules.iter();
        let found = rules
            .enumerate()
            .find(|(_, rule)| rule.matches(index, access));
        match found {
            Some((number, rule)) => (rule.verdict, self.sources[number].clone()),
            None => {
                let layer = self.name.clone();
                (self.spec.default, RuleSource::Default { layer })
            }
        }
    }

    fn weight(&self, index: u32, access: Access) -> u32 {
        let mut rules = self.spec.rules.iter();
        rules
            .find(|rule| rule.matches(index, access))
            .map_or(0, |rule| rule.weight)
    }
}

/// What the layers allow together.
pub(crate) fn combine(layers: &[Layer]) -> Combined {
    let denies = |layer: &Layer| layer.spec.default == Verdict::Deny;
    let mut combined = Combined {
        default: if layers.iter().any(denies) {
            Verdict::Deny
        } else {
            Verdict::Allow
        },
        rules: Vec::new(),
        sources: Vec::new(),
        lost: Vec::new(),
    };
    for piece in pieces(layers) {
        for access in [Access::READ, Access::WRITE] {
            combined.add(layers, piece, access);
        }
    }
    combined
}

/// The ranges in which no rule begins or ends.
fn pieces(layers: &[Layer]) -> Vec<MsrRange> {
    let mut starts = BTreeSet::new();
    for rule in layers.iter().flat_map(|layer| &layer.spec.rules) {
        starts.insert(u64::from(rule.range.first()));
        starts.insert(u64::from(rule.range.last()) + 1);
    }
    let starts: Vec<u64> = starts.into_iter().collect();
    starts
        .windows(2)
        .filter_map(|pair| {
            // A start lies beyond the last index only as the end of a piece.
            MsrRange::new(pair[0] as u32, (pair[1] - 1) as u32).ok()
        })
        .collect()
}

impl Combined {
    fn add(&mut self, layers: &[Layer], piece: MsrRange, access: Access) {
        let index = piece.first();
        let verdicts: Vec<_> = layers.iter().map(|l| l.verdict(index, access)).collect();
        let denied = verdicts
            .iter()
            .find(|(verdict, _)| *verdict == Verdict::Deny);
        if let Some((_, by)) = denied {
            let lost = verdicts.iter().filter(|(verdict, source)| {
                *verdict == Verdict::Allow && !matches!(source, RuleSource::Default { .. })
            });
            for (_, rule) in lost {
                self.lose(rule, piece, access, by);
            }
        }
        let explicit =
            |(_, source): &&(Verdict, RuleSource)| !matches!(source, RuleSource::Default { .. });
        let decisive = match denied {
            Some(denied) => Some(denied),
            None => verdicts.iter().find(explicit),
        };
        // What every layer leaves to its default needs no rule, nor what is denied by default.
        let Some((verdict, source)) = decisive else {
            return;
        };
        if matches!(source, RuleSource::Default { .. }) && *verdict == self.default {
            return;
        }
        let weight = layers
            .iter()
            .map(|l| l.weight(index, access))
            .max()
            .unwrap_or(0);
        let rule = Rule::new(piece, access, *verdict).with_weight(weight);
        self.push(rule, source);
    }

    /// Adds a rule, or widens the last by it where both come from the same.
    fn push(&mut self, rule: Rule, source: &RuleSource) {
        let same = |other: &Rule, theirs: &RuleSource| {
            theirs == source && other.verdict == rule.verdict && other.weight == rule.weight
        };
        let pairs = self.rules.iter_mut().zip(&self.sources).rev().take(2);
        for (last, theirs) in pairs {
            if same(last, theirs) && last.range == rule.range {
                last.access |= rule.access;
                return;
            }
        }
        self.rules.push(rule);
        self.sources.push(source.clone());
    }

    fn lose(&mut self, rule: &RuleSource, msrs: MsrRange, access: Access, by: &RuleSource) {
        let same = self
            .lost
            .iter_mut()
            .find(|lost| lost.rule == *rule && lost.by == *by && lost.msrs == msrs);
        match same {
            Some(lost) => lost.access |= access,
            None => self.lost.push(LostPiece {
                rule: rule.clone(),
                msrs,
                access,
                by: by.clone(),
            }),
        }
    }
}

impl std::fmt::Display for LostRule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            rule,
            msrs,
            access,
            by,
        } = self;
        write!(
            f,
            "{rule} allows {} ({access}), which {by} denies: what one layer denies stays denied",
            RangeSummary(msrs)
        )
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn layer(name: &str, filter: &str) -> Layer {
        Layer::from(&FilterLayer {
            name: name.to_owned(),
            filter: toml::from_str(filter).unwrap(),
        })
    }

    fn spec(combined: &Combined) -> FilterSpec {
        FilterSpec {
            default: combined.default,
            rules: combined.rules.clone(),
        }
    }

    #[test]
    fn a_profile_cannot_widen_a_model_and_says_which_rule_lost() {
        let model = layer(
            "model m",
            "default = \"deny\"\n[[rule]]\nmsrs = [\"0x10\", \"0x20-0x2f\"]\nverdict = \"allow\"",
        );
        let profile = layer(
            "profile p",
            "default = \"deny\"\n[[rule]]\nmsrs = [\"0x20-0x23\", \"0x4b564d00\"]\nverdict = \"allow\"",
        );
        let combined = combine(&[model, profile]);
        let spec = spec(&combined);
        for (index, verdict) in [
            (0x10, Verdict::Deny),
            (0x20, Verdict::Allow),
            (0x23, Verdict::Allow),
            (0x24, Verdict::Deny),
            (0x4b56_4d00, Verdict::Deny),
        ] {
            assert_eq!(spec.verdict(index, Access::READ), verdict, "{index:#x}");
        }
        let lost = lost_rules(combined.lost.into_iter());
        let lost: Vec<String> = lost.iter().map(ToString::to_string).collect();
        assert!(
            lost.contains(
                &"profile p, rule 1 allows 0x4b564d00 (rw), which the default of model m denies: \
                  what one layer denies stays denied"
                    .to_owned()
            ),
            "{lost:#?}"
        );
    }

    #[test]
    fn each_rule_keeps_the_layer_that_it_comes_from() {
        let own = layer(
            "",
            "[[rule]]\nmsrs = [\"0x10\"]\naccess = \"w\"\nverdict = \"deny\"",
        );
        let model = layer(
            "model m",
            "default = \"deny\"\n[[rule]]\nmsrs = [\"0x10\"]\nverdict = \"allow\"\nreason = \"Time.\"",
        );
        let combined = combine(&[own, model]);
        let sources: Vec<(Access, String)> = combined
            .rules
            .iter()
            .zip(&combined.sources)
            .map(|(rule, source)| (rule.access, source.to_string()))
            .collect();
        assert_eq!(
            sources,
            [
                (Access::READ, "model m, rule 1".to_owned()),
                (Access::WRITE, "rule 1".to_owned()),
            ]
        );
        assert_eq!(combined.sources[0].reason(), Some("Time."));
    }

    fn any_filter() -> impl Strategy<Value = FilterConfig> {
        let verdict = || prop_oneof![Just(Verdict::Allow), Just(Verdict::Deny)];
        let access = prop_oneof![Just(Access::READ), Just(Access::WRITE), Just(Access::all())];
        let rule =
            (0u32..12, 0u32..4, access, verdict()).prop_map(|(first, more, access, verdict)| {
                msr_filter::RuleConfig {
                    msrs: vec![MsrRange::new(first, first + more).unwrap()],
                    access,
                    verdict,
                    reason: None,
                    weight: 0,
                }
            });
        (verdict(), prop::collection::vec(rule, 0..5))
            .prop_map(|(default, rules)| FilterConfig { default, rules })
    }

    proptest! {
        #[test]
        fn an_access_is_allowed_where_every_layer_allows_it(filters in prop::collection::vec(any_filter(), 1..4)) {
            let layers: Vec<Layer> = filters.iter().map(|filter| Layer::from(&FilterLayer { name: String::new(), filter: filter.clone() })).collect();
            let combined = spec(&combine(&layers));
            for index in (0..18).chain([u32::MAX - 1, u32::MAX]) {
                for access in [Access::READ, Access::WRITE] {
                    let all = filters.iter().all(|f| FilterSpec::from(f).verdict(index, access) == Verdict::Allow);
                    prop_assert_eq!(combined.verdict(index, access) == Verdict::Allow, all, "{:#x}", index);
                }
            }
        }
    }
}
