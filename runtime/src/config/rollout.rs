//! When a new version is taken back by itself: the `rollout:` block of a deployment.
//!
//! Each node judges by what it has tried itself; the rule is in `node::trial`. `docs/rollout.md` is the
//! reference; a test holds it to the defaults here.

use std::time::Duration;

use super::section::Section;
use super::units;

/// How a new version is watched, and what takes it back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RolloutSpec {
    /// False: a failing version stays until somebody changes it.
    pub automatic: bool,
    /// From a version's first record.
    pub watch: Duration,
    /// Failed records of those tried, in millionths: more take the version back.
    pub failures_ppm: u32,
    /// Tried at least, before their share counts.
    pub records: u64,
    /// A lag that grows over the whole watch takes the version back.
    pub lag: bool,
    /// A circuit breaker of its outboxes that opens takes the version back.
    pub breaker: bool,
}

impl Default for RolloutSpec {
    fn default() -> RolloutSpec {
        RolloutSpec {
            automatic: true,
            watch: Duration::from_secs(300),
            failures_ppm: 50_000,
            records: 100,
            lag: true,
            breaker: true,
        }
    }
}

/// A lag is looked at ten times in a watch: in a shorter one a pause of the brokers is all that is seen.
const LAG_WATCH_MIN: Duration = Duration::from_secs(10);
/// In a shorter one it counts only if the document says so: records that come in bursts look like it.
const LAG_WATCH_UNASKED: Duration = Duration::from_secs(60);

/// Reads `rollout:`.
pub(super) fn read(section: &mut Section<'_>) -> RolloutSpec {
    let standard = RolloutSpec::default();
    let Some(mut block) = section.section("rollout") else { return standard };
    let automatic = block.flag_or("automatic", standard.automatic);
    if !automatic {
        for key in ["watch", "failures", "records", "lag", "breaker"] {
            if let Some(field) = block.take(key) {
                field.refuse("has no use with `automatic: false`: leave one of the two out");
            }
        }
        block.finish();
        return RolloutSpec { automatic, ..standard };
    }
    let longest = Duration::from_secs(24 * 3600);
    let watch = block.duration("watch", standard.watch, Duration::from_secs(1)..=longest);
    let asks_for_lag = block.take("lag");
    let read = RolloutSpec {
        automatic,
        watch,
        failures_ppm: block.share("failures", standard.failures_ppm),
        records: block.integer("records", standard.records, 1..=1_000_000),
        lag: block.flag_or("lag", standard.lag && watch >= LAG_WATCH_UNASKED),
        breaker: block.flag_or("breaker", standard.breaker),
    };
    if let Some(field) = asks_for_lag.filter(|_| read.lag && read.watch < LAG_WATCH_MIN) {
        field.refuse(format!(
            "needs a watch of at least {}: shorter ones see too little of a lag",
            units::show_duration(LAG_WATCH_MIN)
        ));
    }
    block.finish();
    read
}

#[cfg(test)]
mod tests {
    use super::super::deployment::DeploymentSpec;
    use super::*;

    fn parse(rollout: &str) -> Result<RolloutSpec, String> {
        let base = "name: a\nmodule: a.wasm\ninputs: { in: { topic: in } }\n";
        let parsed = DeploymentSpec::parse(&format!("{base}{rollout}\n"));
        parsed.map(|spec| spec.rollout).map_err(|problems| problems.to_string())
    }

    #[test]
    fn a_rollout_says_how_long_how_many_and_what_share() {
        assert_eq!(parse(""), Ok(RolloutSpec::default()));
        let read = parse("rollout: { watch: 90s, failures: 0.5%, records: 20, lag: false, breaker: false }");
        let expected = RolloutSpec {
            automatic: true,
            watch: Duration::from_secs(90),
            failures_ppm: 5_000,
            records: 20,
            lag: false,
            breaker: false,
        };
        assert_eq!(read, Ok(expected));
        assert_eq!(parse("rollout: { automatic: false }").map(|read| read.automatic), Ok(false));
    }

    #[test]
    fn a_lag_counts_in_a_short_watch_only_if_that_is_asked_for() {
        let lag = |rollout: &str| parse(rollout).map(|read| read.lag);
        assert_eq!(lag("rollout: { watch: 60s }"), Ok(true));
        assert_eq!(lag("rollout: { watch: 59s }"), Ok(false));
        assert_eq!(lag("rollout: { watch: 10s, lag: true }"), Ok(true));
    }

    #[test]
    fn nonsense_is_refused_with_what_to_write() {
        let problems = parse("rollout: { automatic: 1, watch: 0s, failures: 5, records: 0, wach: 1s }");
        assert_eq!(
            problems,
            Err("line 4: rollout.automatic: expected true or false, found a number\n\
                 line 4: rollout.watch: 0s is outside 1s to 24h\n\
                 line 4: rollout.failures: `5` needs a percent sign: write 5%\n\
                 line 4: rollout.records: 0 is outside 1 to 1000000\n\
                 line 4: rollout.wach: unknown key, did you mean `watch`?"
                .to_owned())
        );
        for (rollout, says) in [
            ("{ failures: 101% }", "101% is outside 0% to 100%"),
            ("{ failures: few }", "`few` is no share: write 5% or 0.5%"),
            ("{ automatic: false, records: 5 }", "records: has no use with `automatic: false`"),
            ("{ watch: 9s, lag: true }", "lag: needs a watch of at least 10s"),
        ] {
            let problems = parse(&format!("rollout: {rollout}")).expect_err(rollout);
            assert!(problems.contains(says), "{rollout}: {problems}");
        }
    }

    #[test]
    fn the_documentation_names_every_key_with_its_default() {
        let text = include_str!("../../../docs/rollout.md");
        let RolloutSpec { automatic, watch, failures_ppm, records, lag, breaker } = RolloutSpec::default();
        for (key, default) in [
            ("automatic", automatic.to_string()),
            ("watch", units::show_duration(watch)),
            ("failures", units::show_share(failures_ppm)),
            ("records", records.to_string()),
            ("lag", lag.to_string()),
            ("breaker", breaker.to_string()),
        ] {
            let row = format!("| `{key}` | {default} |");
            assert!(text.contains(&row), "docs/rollout.md has no row {row}");
        }
    }
}
