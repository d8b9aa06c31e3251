//! What is about to change, shown before it does.

use tidemill_proto::v1 as proto;

use super::failure::Failure;
use super::topic_documents;

/// Longest value of a change that is shown.
const VALUE_CHARS_MAX: usize = 60;

/// What a node says to all of it.
#[derive(Default)]
pub struct Planned {
    pub topics: Vec<proto::AppliedTopic>,
    pub deployments: Vec<proto::DeployResponse>,
}

/// Writes the plan to standard error, where notes go: what programs read is the outcome.
pub fn show_plan(planned: &Planned) -> Result<(), Failure> {
    eprint!("{}", text(planned));
    Ok(())
}

fn text(planned: &Planned) -> String {
    let mut text = String::new();
    for topic in &planned.topics {
        let sign = match topic.result() {
            proto::TopicResult::Created => "+",
            proto::TopicResult::Changed => "~",
            proto::TopicResult::Unchanged | proto::TopicResult::Unspecified => "=",
        };
        let what = topic_documents::planned(topic.result());
        text.push_str(&format!("{sign} topic {}: {what}\n", topic.name));
        add_changes(&mut text, &topic.changes);
        for setting in &topic.unnamed {
            text.push_str(&format!("    {}, which the document does not name, stays\n", shown(setting)));
        }
    }
    for answer in &planned.deployments {
        let deployment = answer.deployment.clone().unwrap_or_default();
        let (sign, what) = match (answer.unchanged, deployment.revision) {
            (true, _) => ("=", "unchanged".to_owned()),
            (false, 0) => ("+", "new".to_owned()),
            (false, _) => ("~", format!("version {}", deployment.version)),
        };
        text.push_str(&format!("{sign} {}: {what}\n", deployment.name));
        add_changes(&mut text, &answer.changes);
    }
    for answer in &planned.deployments {
        let name = answer.deployment.as_ref().map_or("", |deployment| deployment.name.as_str());
        text.push_str(&warnings(name, &answer.warnings));
    }
    text
}

/// What a node warns of, line by line.
pub fn warnings(name: &str, warnings: &[String]) -> String {
    warnings.iter().map(|warning| format!("warning: {name}: {warning}\n")).collect()
}

fn add_changes(text: &mut String, changes: &[proto::Change]) {
    for change in changes {
        text.push_str(&format!("    {}\n", line(change)));
    }
}

/// One change in a line: `workers: 1 -> 2`.
pub fn line(change: &proto::Change) -> String {
    format!("{}: {} -> {}", change.field, shown(&change.before), shown(&change.after))
}

fn shown(value: &str) -> String {
    match value {
        "" => "-".to_owned(),
        value => {
            console::truncate_str(&value.replace(char::is_control, " "), VALUE_CHARS_MAX, "…").into_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(field: &str, before: &str, after: &str) -> proto::Change {
        proto::Change { field: field.into(), before: before.into(), after: after.into() }
    }

    #[test]
    fn a_plan_names_what_is_new_what_changes_and_what_stays_and_ends_with_what_may_not_be_meant() {
        let answer = |name: &str, revision, unchanged, changes| proto::DeployResponse {
            deployment: Some(proto::Deployment {
                name: name.into(),
                revision,
                version: 2,
                ..Default::default()
            }),
            unchanged,
            changes,
            ..Default::default()
        };
        let warned = proto::DeployResponse {
            warnings: vec!["inbox.ttl: it is short".into(), "again".into()],
            ..answer("a", 0, false, Vec::new())
        };
        let deployments = vec![
            warned,
            answer("b", 7, false, vec![change("workers", "", "2")]),
            answer("c", 8, true, Vec::new()),
        ];
        let planned = Planned { topics: Vec::new(), deployments };
        let expected = "+ a: new\n~ b: version 2\n    workers: - -> 2\n= c: unchanged\n\
                        warning: a: inbox.ttl: it is short\nwarning: a: again\n";
        assert_eq!(text(&planned), expected);
    }

    #[test]
    fn topics_come_first_and_what_their_documents_do_not_name_is_told() {
        let topic = |name: &str, result: proto::TopicResult, changes, unnamed: &[&str]| proto::AppliedTopic {
            name: name.into(),
            result: result.into(),
            changes,
            unnamed: unnamed.iter().map(ToString::to_string).collect(),
        };
        let retention = change("config.retention.ms", "604800000", "1000");
        let topics = vec![
            topic("words", proto::TopicResult::Created, vec![change("partitions", "", "3")], &[]),
            topic("counts", proto::TopicResult::Changed, vec![retention], &["flush.ms=7"]),
            topic("copies", proto::TopicResult::Unchanged, Vec::new(), &[]),
        ];
        let deployments = vec![proto::DeployResponse::default()];
        let expected = "+ topic words: create\n    partitions: - -> 3\n\
                        ~ topic counts: change\n    config.retention.ms: 604800000 -> 1000\n    \
                        flush.ms=7, which the document does not name, stays\n\
                        = topic copies: unchanged\n+ : new\n";
        assert_eq!(text(&Planned { topics, deployments }), expected);
    }
}
