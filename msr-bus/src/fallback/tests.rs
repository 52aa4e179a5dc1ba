use super::*;

#[test]
fn each_exit_reason_has_its_own_answer() {
    for ignored in ExitReason::ALL {
        let mut fallback = Fallback::default();
        match ignored {
            ExitReason::Filter => fallback.filter = Unclaimed::Ignore,
            ExitReason::Unknown => fallback.unknown = Unclaimed::Ignore,
            ExitReason::Invalid => fallback.invalid = Unclaimed::Ignore,
        }
        for reason in ExitReason::ALL {
            let expected = if reason == ignored {
                Ok(0)
            } else {
                Err(GeneralProtection)
            };
            assert_eq!(
                fallback.read(reason),
                expected,
                "{ignored} ignored, {reason}"
            );
        }
    }
}

#[test]
fn a_configuration_names_the_reasons() {
    let fallback: Fallback = toml::from_str("unknown = \"ignore\"").unwrap();
    assert_eq!(
        fallback,
        Fallback {
            unknown: Unclaimed::Ignore,
            ..Fallback::default()
        }
    );
    assert!(toml::from_str::<Fallback>("unknwon = \"ignore\"").is_err());
}
