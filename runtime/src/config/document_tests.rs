//! Deployment documents: good ones, a table of bad ones with the exact text a person reads, and the
//! property that nothing at all makes the reader panic.

use std::time::Duration;

use tidemill_test_support::proptest::prelude::*;

use super::deployment::*;
use super::document::SpecDefaults;
use super::documents::Document;
use super::failures::{FailureKind, Then};
use super::outbox::BreakerSpec;
use super::policy::Policy;
use super::units;

const MINIMAL: &str = "name: word-count\nmodule: count.wasm\ninputs: { words: { topic: words } }\n";

#[test]
fn a_minimal_document_has_the_documented_defaults() {
    let spec = DeploymentSpec::parse(MINIMAL).expect("valid");
    assert_eq!(spec.name, "word-count");
    assert_eq!(spec.inputs["words"], InputSpec { topic: "words".into(), start: Start::Earliest });
    assert_eq!(spec.guarantee, Guarantee::ExactlyOnce);
    assert_eq!((spec.workers, spec.failures), (1, Failures::halt()));
    assert!(spec.rollout.automatic, "{:?}", spec.rollout);
    assert_eq!(spec.commit.interval, Duration::from_millis(100));
    assert_eq!(spec.commit.min_interval, Duration::from_millis(10));
    assert_eq!(spec.commit.overlay_bytes, 8 << 20);
    assert_eq!(spec.limits.batch_time, Duration::from_secs(5));
    assert_eq!((spec.limits.memory_bytes, spec.limits.emit_bytes), (64 << 20, 4 << 20));
    assert_eq!(spec.changelog.min_compaction_lag, Duration::ZERO);
    assert_eq!(spec.config, serde_json::json!({}));
}

#[test]
fn a_full_document_says_what_it_means() {
    let text = "
name: flights
module: ../flights
inputs:
  departures: { topic: flights.raw, start: latest }
  corrections: { topic: flights.fix, start: 2013-01-31T12:00:00Z }
outputs:
  delays: { topic: flights.delays }
guarantee: at_least_once
workers: 4
config: { by: [carrier, day], skip: no, limit: 1.5, empty: ~ }
failures: skip
limits: { memory: 128MiB, batch_time: 250ms, emit_bytes: 1MiB, batch_records: 100 }
commit: { interval: 1s, min_interval: 0s, overlay_bytes: 8MiB, max_records: 5000 }
changelog: { replication_factor: 3, min_compaction_lag: 1h }
";
    let spec = DeploymentSpec::parse(text).expect("valid");
    assert_eq!(spec.inputs["departures"].start, Start::Latest);
    assert_eq!(spec.inputs["corrections"].start, Start::Timestamp(1_359_633_600_000));
    assert_eq!(
        spec.outputs["delays"],
        OutputSpec::Topic(TopicSpec { topic: "flights.delays".into(), ids: false, emit: Emit::Each })
    );
    assert_eq!((spec.guarantee, spec.workers, spec.failures), (Guarantee::AtLeastOnce, 4, Failures::skip()));
    let config = serde_json::json!({ "by": ["carrier", "day"], "skip": "no", "limit": 1.5, "empty": null });
    assert_eq!(spec.config, config);
    assert_eq!((spec.limits.memory_bytes, spec.limits.batch_records), (128 << 20, 100));
    assert_eq!((spec.commit.min_interval, spec.commit.max_records), (Duration::ZERO, 5000));
    assert_eq!(spec.changelog.replication_factor, Some(3));
    assert_eq!(spec.changelog.min_compaction_lag, Duration::from_secs(3600));
    // The day that DESIGN asks for where a record may be ahead of the committed offset.
    assert_eq!(spec.changelog.delete_retention, Duration::from_secs(86_400));
}

#[test]
fn the_documentation_names_every_key_with_its_default() {
    let text = include_str!("../../../docs/deploying.md");
    let example = text.split("```").nth(1).and_then(|block| block.strip_prefix("yaml\n"));
    DeploymentSpec::parse(example.expect("an example")).expect("that is valid");
    let DeploymentSpec { workers, correlation, commit, changelog, .. } =
        DeploymentSpec::parse(MINIMAL).expect("valid");
    for (key, default) in [
        ("guarantee", "`exactly_once`".to_owned()),
        ("workers", format!("`defaults.workers`, {workers}")),
        ("config", "`{}`".to_owned()),
        ("failures", "`halt`".to_owned()),
        ("inbox", "none".to_owned()),
        ("correlation", format!("`{correlation}`")),
        ("commit.interval", format!("`defaults.commit_interval`, {}", units::show_duration(commit.interval))),
        ("commit.min_interval", units::show_duration(commit.min_interval)),
        ("commit.overlay_bytes", units::show_bytes(commit.overlay_bytes)),
        ("commit.max_records", commit.max_records.to_string()),
        (
            "changelog.min_compaction_lag",
            format!("{}; 24h with `at_least_once`", units::show_duration(changelog.min_compaction_lag)),
        ),
        ("changelog.delete_retention", units::show_duration(changelog.delete_retention)),
    ] {
        let row = format!("| `{key}` | {default} |");
        assert!(text.contains(&row), "docs/deploying.md has no row {row}");
    }
}

#[test]
fn a_topic_is_sent_each_record_or_the_last_ones() {
    let of = |output: &str, more: &str| {
        let text = format!("{MINIMAL}outputs: {{ out: {output} }}\n{more}");
        match DeploymentSpec::parse(&text).expect("valid").outputs.remove("out") {
            Some(OutputSpec::Topic(topic)) => topic.emit,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(of("{ topic: t }", ""), Emit::Each);
    assert_eq!(of("{ topic: t, emit: each }", ""), Emit::Each);
    assert_eq!(of("{ topic: t, emit: commit, ids: true }", ""), Emit::Commit);
    assert_eq!(of("{ topic: t, emit: commit }", "guarantee: at_least_once\n"), Emit::Commit);
}

#[test]
fn what_a_document_says_of_decode_goes_for_schema_where_it_says_nothing_else() {
    let of = |failures: &str| {
        let spec = DeploymentSpec::parse(&format!("{MINIMAL}failures: {failures}\n")).expect("valid");
        [FailureKind::Decode, FailureKind::Schema].map(|kind| spec.failures.policy(kind).then)
    };
    assert_eq!(of("{ decode: { then: skip } }"), [Then::Skip; 2]);
    let both = of("{ decode: { then: skip }, schema: { then: dead_letter } }");
    assert_eq!(both, [Then::Skip, Then::DeadLetter]);
    assert_eq!(of("{ schema: { then: park } }"), [Then::Halt, Then::Park]);
}

#[test]
fn a_node_may_change_what_a_silent_document_gets() {
    let defaults = SpecDefaults {
        start: Start::Latest,
        workers: 3,
        commit_interval: Duration::from_millis(5),
        batch_records: 50,
        policy: Policy { memory_bytes: Some(32 << 20), ..Policy::default() },
        attempts: 7,
        first_pause: Duration::from_secs(2),
        breaker: BreakerSpec { failures: 9, open: Duration::from_secs(3) },
        dead_letters: Some("dlq-events".to_owned()),
    };
    let failing = format!(
        "{MINIMAL}failures: {{ then: dead_letter }}\noutputs: {{ hook: {{ http: {{ url: 'http://h/' }} }} }}\n"
    );
    let spec = DeploymentSpec::parse_with(&failing, &defaults).expect("valid");
    let transient = spec.failures.policy(FailureKind::Transient);
    assert_eq!((transient.attempts, transient.backoff.min), (7, Duration::from_secs(2)));
    assert_eq!(spec.failures.dead_letters.as_deref(), Some("dlq-events"));
    let hook = spec.destinations().next().expect("a destination").1;
    assert_eq!((hook.breaker.failures, hook.breaker.open), (9, Duration::from_secs(3)));
    let reads = MINIMAL.replace("topic: words", "topic: dlq-events");
    assert!(reads.contains("topic: dlq-events"), "{reads}");
    let spec = DeploymentSpec::parse_with(&reads, &defaults).expect("it reads letters and makes none");
    assert_eq!(spec.topics().collect::<Vec<_>>(), [("inputs.words.topic".to_owned(), "dlq-events")]);
    let buries = format!("{reads}failures: {{ then: dead_letter }}\n");
    assert!(DeploymentSpec::parse_with(&buries, &defaults).is_err(), "it would read its own");
    let spec = DeploymentSpec::parse_with(MINIMAL, &defaults).expect("valid");
    assert_eq!(spec.inputs["words"].start, Start::Latest);
    assert_eq!((spec.workers, spec.limits.batch_records), (3, 50));
    assert!(spec.commit.min_interval <= spec.commit.interval);
    assert_eq!(spec.limits.memory_bytes, 32 << 20);
    // What a document wants beyond the policy is not lowered in silence: the deploy refuses it.
    let more = format!("{MINIMAL}limits: {{ memory: 1GiB, store_bytes: 2GiB, log_lines: 0 }}\n");
    let spec = DeploymentSpec::parse_with(&more, &defaults).expect("valid");
    let limits = (spec.limits.memory_bytes, spec.limits.store_bytes, spec.limits.log_lines);
    assert_eq!(limits, (1 << 30, Some(2 << 30), 0));
    assert_eq!(defaults.policy.exceeded(&spec.limits).len(), 1);
}

#[test]
fn a_document_says_who_answers_for_it() {
    let text =
        format!("{MINIMAL}owner: team-payments\noncall: payments-oncall\ntier: 1\nslo: p95 below 200 ms\n");
    let spec = DeploymentSpec::parse(&text).expect("valid");
    let some = |text: &str| Some(text.to_owned());
    let expected = Ownership {
        owner: some("team-payments"),
        oncall: some("payments-oncall"),
        tier: some("1"),
        slo: some("p95 below 200 ms"),
    };
    assert_eq!(spec.ownership, expected);
    let long = format!("{MINIMAL}owner: {}\nslo: [a]\n", "x".repeat(201));
    let said = DeploymentSpec::parse(&long).expect_err("refused").to_string();
    assert!(
        said.contains("owner: has 201 characters") && said.contains("slo: expected a single value"),
        "{said}"
    );
}

/// Each bad document with everything that is said about it.
#[test]
fn bad_documents_are_refused_with_line_key_and_remedy() {
    let base = MINIMAL;
    let cases: &[(String, &str)] = &[
        (
            "name: Word_Count\nmodul: a.wasm\ninputs: { words: { tpoic: words, start: soon } }\nworkers: many\n".into(),
            "line 1: name: `Word_Count` is no deployment name: use 1 to 100 characters of a-z, 0-9 and -\n\
             line 2: modul: unknown key, did you mean `module`?\n\
             line 3: inputs.words.start: unknown value `soon`: write earliest, latest or a time like 2013-01-31T12:00:00Z\n\
             line 3: inputs.words.tpoic: unknown key, did you mean `topic`?\n\
             line 4: workers: expected a whole number, found a text",
        ),
        (
            format!("{base}guarantee: exactly-once\n"),
            "line 4: guarantee: unknown value `exactly-once`, did you mean `exactly_once`?",
        ),
        (
            format!("{base}limits: {{ memory: 64 megs, batch_time: 5, emit_bytes: 2GiB }}\n"),
            "line 4: limits.memory: `64 megs` is no size: write 64MiB, 512KiB, 1GiB or a number of bytes\n\
             line 4: limits.batch_time: `5` needs a unit: write 5ms or 5s\n\
             line 4: limits.emit_bytes: 2GiB is outside 1KiB to 1GiB",
        ),
        (
            format!("{base}commit:\n  interval: 10ms\n  min_interval: 1s\n"),
            "line 6: commit.min_interval: 1s is above commit.interval (10ms)",
        ),
        (
            format!("{base}commit: {{ overlay_bytes: 1MiB }}\n"),
            "line 1: limits.emit_bytes: 4MiB is above commit.overlay_bytes (1MiB): \
             what one record writes must fit the overlay",
        ),
        (
            format!(
                "{base}failures:\n  transient: {{ attempts: 5, backoff: 30s..1s }}\n  permanent: {{ backoff: 1s..2s }}\n  \
                 decode: {{ attempts: 2000, than: park }}\n  then: bury\n  order: sideways\n  parked: {{ records: 0 }}\n  \
                 dead_letters: {{ topic: words }}\n"
            ),
            "line 4: failures.dead_letters.topic: `words` is an input or output of this deployment: dead letters need a topic of \
             their own\n\
             line 5: failures.transient.backoff: `30s..1s` must rise, from above zero to at most 24h\n\
             line 6: failures.permanent.backoff: is the pause between attempts, and there are none: give it `attempts` as well\n\
             line 7: failures.decode.attempts: 2000 is outside 0 to 1000\n\
             line 7: failures.decode.than: unknown key, did you mean `then`?\n\
             line 8: failures.then: unknown value `bury`, known are halt, skip, dead_letter, park\n\
             line 9: failures.order: unknown value `sideways`, known are park_key, none\n\
             line 10: failures.parked.records: 0 is outside 1 to 1000000",
        ),
        (
            format!("{base}failures: {{ transient: {{ attempts: 0 }}, dead_letters: {{ topic: dead }} }}\n"),
            "line 4: failures.dead_letters: has no use: no kind of failure says `then: dead_letter`, and none is parked, so that it \
             could be dropped",
        ),
        (
            format!("{base}failures: {{ dead_letters: {{ topic: dead }}, events: {{ topic: dead }} }}\n"),
            "line 4: failures.events.topic: `dead` takes dead letters: failure events need a topic of their own",
        ),
        (
            format!("{base}failures: {{ events: {{ topic: words, form: x }} }}\n"),
            "line 4: failures.events.form: unknown key, known are topic\n\
             line 4: failures.events.topic: `words` is an input or output of this deployment: failure events need a topic of \
             their own",
        ),
        (
            format!("{base}failures: {{ transient: {{ attempts: 0 }}, order: none }}\n"),
            "line 4: failures.order: says what waits behind a parked record, but no kind of failure is tried again or parked: \
             leave it out, or give a kind `attempts` or `then: park`",
        ),
        (
            format!("{base}failures: {{ decode: {{ then: park, sample: 1% }}, trap: {{ then: dead_letter, sample: 101% }} }}\n"),
            "line 4: failures.decode.sample: says how many become dead letters, and none does: say `then: dead_letter` as well\n\
             line 4: failures.trap.sample: 101% is outside 0% to 100%",
        ),
        (
            format!("{base}guarantee: at_least_once\ninbox: {{ id: \"heder:x\", ttl: 0s, tll: 1h }}\n"),
            "line 5: inbox: needs `guarantee: exactly_once`: an id and the effects of its record change in one commit\n\
             line 5: inbox.ttl: 0s is outside 1s to 87600h\n\
             line 5: inbox.tll: unknown key, did you mean `ttl`?\n\
             line 5: inbox.id: unknown value `heder:x`: write header:NAME, key, json:/POINTER (from the value's root), hash or offset",
        ),
        (
            format!("{base}inbox: {{ id: [\"heder:x\", offset, key, key, [hash]], ttl: 1h }}\n"),
            "line 4: inbox.id[0]: unknown value `heder:x`: write header:NAME, key, json:/POINTER (from the value's root), hash or \
             offset\n\
             line 4: inbox.id[1]: no two records have the same, so nothing joined with it repeats: leave it out\n\
             line 4: inbox.id[3]: key is a part already\n\
             line 4: inbox.id[4]: expected a text, found a list",
        ),
        (
            format!("{base}inbox: {{ id: [hash], ttl: 1h }}\n"),
            "line 4: inbox.id: a list joins 2 to 8 parts, and this one has 1",
        ),
        (
            format!("{base}inbox: {{ id: key }}\n"),
            "line 4: inbox.ttl: is missing: write how long an id or a number is remembered, like ttl: 24h",
        ),
        (
            format!("{base}inbox: {{ ttl: 1h, gaps: ignroe }}\n"),
            "line 4: inbox.gaps: says what a gap in a sequence means, and there is none: give it a `sequence` as well\n\
             line 4: inbox.gaps: unknown value `ignroe`, did you mean `ignore`?\n\
             line 4: inbox.id: is missing: write id: \"header:NAME\", key, \"json:/POINTER\", hash or offset; or sequence: \
             \"header:NAME\" or \"json:/POINTER\"",
        ),
        (
            format!("{base}inbox: {{ sequence: key, ttl: 1h }}\n"),
            "line 4: inbox.sequence: unknown value `key`: write header:NAME or json:/POINTER (from the value's root)",
        ),
        (
            format!(
                "{base}outputs:\n  a: {{ topic: t, emit: comit }}\n  b: {{ http: {{ url: 'http://h/' }}, emit: commit }}\n"
            ),
            "line 5: outputs.a.emit: unknown value `comit`, did you mean `commit`?\n\
             line 6: outputs.b.emit: is for topics, and an outbox delivers each of its records: leave it out",
        ),
        (
            format!("{base}guarantee: at_least_once\noutputs: {{ a: {{ topic: t, ids: true, emit: commit }} }}\n"),
            "line 5: outputs.a.emit: commit does not go with `ids` under `guarantee: at_least_once`: after a repetition, a reader \
             that drops ids it has seen would end with an older record; leave out one of the two, or set `guarantee: exactly_once`",
        ),
        (
            format!("{base}failures: retry\n"),
            "line 4: failures: unknown value `retry`: write halt, skip, or a mapping like \
             { transient: { attempts: 5, backoff: 100ms..30s }, then: dead_letter }",
        ),
        (
            "name: x\nmodule: 5\ninputs:\n  a: { topic: t }\n  b: { topic: t }\n".into(),
            "line 2: module: expected a text, found a number: put it in quotes, \"5\"\n\
             line 5: inputs.b: inputs.a reads `t` already: bind each topic once",
        ),
        (
            "name: x\nmodule: m\ninputs: { a: { topic: t, topic: u } }\nworkers: 0\nname: y\nwrokers: 2\n".into(),
            "line 3: inputs.a.topic: is given twice, first on line 3: keep one\n\
             line 4: workers: 0 is outside 1 to 64\n\
             line 5: name: is given twice, first on line 1: keep one\n\
             line 6: wrokers: unknown key, did you mean `workers`?",
        ),
        ("name: x\nmodule: m\ninputs: {}\n".into(), "line 3: inputs: has 0 entries: 1 to 64 are possible"),
        (
            format!("{base}---\n{}", base.replace("word-count", "other")),
            "document: expected one deployment, found 2",
        ),
        ("".into(), "document: is empty: a deployment needs at least name, module and inputs"),
        ("- a\n".into(), "line 1: expected a mapping, found a list"),
    ];
    for (text, expected) in cases {
        let problems = DeploymentSpec::parse(text).expect_err(text);
        assert_eq!(problems.to_string(), *expected, "for\n{text}");
    }
}

#[test]
fn what_is_wrong_with_inbox_failures_and_outbox_is_said_at_once_and_no_secret_is_repeated() {
    let text = format!(
        "{MINIMAL}inbox: {{ id: key, ttl: 0s }}\nfailures:\n  transient: {{ then: bury }}\n  \
         order: [park_key, none]\noutputs:\n  hook: {{ http: {{ secret: canary }} }}\n"
    );
    let said = DeploymentSpec::parse(&text).expect_err("refused").to_string();
    for part in [
        "inbox.ttl: 0s is outside",
        "failures.transient.then: unknown value `bury`",
        "failures.order: expected a text, found a list",
        "outputs.hook.http.url: is missing",
        "outputs.hook.http.secret: is a secret in plain text",
    ] {
        assert!(said.contains(part), "{part} is not in\n{said}");
    }
    assert!(!said.contains("canary"), "{said}");
}

#[test]
fn a_key_may_be_of_any_length_in_a_handlers_own_configuration_and_nowhere_else() {
    let key = "k".repeat(5_000);
    let own = format!("{MINIMAL}config:\n  ? {key}\n  : 1\n");
    assert_eq!(DeploymentSpec::parse(&own).expect("valid").config[&key], 1);
    for (text, path) in [
        (format!("{MINIMAL}? {key}\n: 1\n"), ""),
        (format!("{MINIMAL}limits:\n  ? {key}\n  : 1\n"), "limits: "),
    ] {
        let refused = DeploymentSpec::parse(&text).expect_err("no such key").to_string();
        assert!(
            refused.ends_with(&format!("{path}a key has 5000 bytes; at most 4096 are read")),
            "{refused}"
        );
    }
}

#[test]
fn a_file_of_several_documents_keeps_each_text_and_its_lines() {
    let text = "# the pipeline\nname: first\nmodule: a.wasm\ninputs: { i: { topic: t } }\n---\n\
                name: second\nmodule: b.wasm\ninputs: { i: { topic: u } } # last\n";
    let parts = Document::split(text).expect("valid");
    let specs = parts.iter().map(|(part, _)| DeploymentSpec::parse(part).expect("valid by itself"));
    assert_eq!(specs.map(|spec| spec.name).collect::<Vec<_>>(), ["first", "second"]);
    assert!(parts[0].0.starts_with("# the pipeline\n") && parts[1].0.ends_with("# last\n"));

    let twice = text.replace("second", "first");
    let problems = Document::parse_all(&twice).expect_err("one name, two deployments");
    assert_eq!(problems.to_string(), "line 6: name: `first` is deployed by an earlier document of this file");
    let broken = text.replace("topic: u", "topik: u");
    let problems = Document::parse_all(&broken).expect_err("misspelt");
    assert!(problems.to_string().contains("line 8: inputs.i.topik"), "{problems}");
}

/// Pieces that documents are made of, so that random text reaches beyond the first syntax error.
fn fragment() -> impl Strategy<Value = String> {
    let words = [
        "name",
        "module",
        "inputs",
        "outputs",
        "limits",
        "commit",
        "changelog",
        "failures",
        "rollout",
        "start",
        "topic",
        "kind: topic\n",
        "partitions",
        "workers",
        "interval",
        "memory",
        ": ",
        ":\n  ",
        "\n",
        "- ",
        "{",
        "}",
        "[",
        "]",
        ", ",
        "&a ",
        "*a",
        "<<: ",
        "---\n",
        "|\n",
        ">\n",
        "\"",
        "'",
        "!!int ",
        "~",
        "5",
        "-1",
        "1e999",
        "999999999999999999999999999999",
        "0x",
        ".nan",
        "64MiB",
        "30s",
        "\u{feff}",
        "é",
        "\t",
        "#",
        "%YAML 1.2\n",
    ];
    prop::sample::select(words.to_vec()).prop_map(str::to_owned)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_text_makes_the_reader_panic(text in ".{0,200}") {
        let _ = Document::parse_all(&text);
    }

    #[test]
    fn no_heap_of_fragments_makes_the_reader_panic(parts in prop::collection::vec(fragment(), 0..40)) {
        let text = parts.concat();
        let _ = Document::parse_all(&text);
        let _ = Document::split(&text);
    }

    #[test]
    fn no_value_in_a_sound_frame_makes_the_reader_panic(key in "[a-z_]{1,12}", value in ".{0,40}") {
        let _ = DeploymentSpec::parse(&format!("{MINIMAL}{key}: {value}\n"));
        let _ = DeploymentSpec::parse(&format!("{MINIMAL}limits: {{ memory: {value} }}\ncommit: {{ {key}: {value} }}\n"));
    }
}
