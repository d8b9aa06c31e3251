//! What is about to change, shown before it does.

use tidemill_proto::v1 as proto;

use super::failure::Failure;

/// Longest value of a change that is shown.
const VALUE_CHARS_MAX: usize = 60;

/// Writes the plan to standard error, where notes go: what programs read is the outcome.
pub fn show_plan(planned: &[proto::DeployResponse]) -> Result<(), Failure> {
    eprint!("{}", text(planned));
    Ok(())
}

fn text(planned: &[proto::DeployResponse]) -> String {
    let mut text = String::new();
    for answer in planned {
        let deployment = answer.deployment.clone().unwrap_or_default();
        let (sign, what) = match (answer.unchanged, deployment.revision) {
            (true, _) => ("=", "unchanged".to_owned()),
            (false, 0) => ("+", "new".to_owned()),
            (false, _) => ("~", format!("version {}", deployment.version)),
        };
        text.push_str(&format!("{sign} {}: {what}\n", deployment.name));
        for change in &answer.changes {
            text.push_str(&format!("    {}\n", line(change)));
        }
    }
    text
}

/// One change in a line: `workers: 1 -> 2`.
fn line(change: &proto::Change) -> String {
    let shown = |value: &str| match value {
        "" => "-".to_owned(),
        value => {
            console::truncate_str(&value.replace(char::is_control, " "), VALUE_CHARS_MAX, "…").into_owned()
        }
    };
    format!("{}: {} -> {}", change.field, shown(&change.before), shown(&change.after))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_names_what_is_new_what_changes_and_what_stays() {
        let answer = |name: &str, revision, unchanged, changes| proto::DeployResponse {
            deployment: Some(proto::Deployment {
                name: name.into(),
                revision,
                version: 2,
                ..Default::default()
            }),
            unchanged,
            changes,
        };
        let change = proto::Change { field: "workers".into(), before: String::new(), after: "2".into() };
        let planned = [
            answer("a", 0, false, Vec::new()),
            answer("b", 7, false, vec![change]),
            answer("c", 8, true, Vec::new()),
        ];
        assert_eq!(text(&planned), "+ a: new\n~ b: version 2\n    workers: - -> 2\n= c: unchanged\n");
    }
}
