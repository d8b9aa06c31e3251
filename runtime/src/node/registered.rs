//! A deployment as the registry holds it, read once: whoever needs its document or manifest finds
//! them parsed.

use std::sync::Arc;

use super::history::History;
use super::ledger::Ledger;
use super::retries::Retries;
use crate::config::deployment::DeploymentSpec;
use crate::config::document::SpecDefaults;
use crate::config::manifest::Manifest;
use crate::config::problem::Problem;

#[derive(Debug, Clone, PartialEq)]
pub struct Registered {
    pub name: String,
    /// Rises with every accepted change of this name, and never falls, not even over a delete:
    /// it is the log position after the entry that made it.
    pub revision: u64,
    /// SHA-256 of the module, lower-case hexadecimal.
    pub module: String,
    pub document: String,
    /// What the document says; what it leaves open, the defaults of this node say.
    pub parsed: Arc<Parsed>,
    /// What the stores of this life hold.
    pub ledger: Arc<Ledger>,
    /// One life of the deployment, from its first deploy to its delete.
    pub incarnation: String,
    pub deployed_at_ms: i64,
    /// Partitions of the inputs at the first deploy of this life; later ones were added.
    pub first_partitions: i32,
    /// It is to run nowhere.
    pub paused: bool,
    /// What its last revisions were about.
    pub retries: Retries,
    /// The last one is what this is.
    pub history: History,
}

/// A document and a manifest that a node of a newer version wrote may say what this one cannot read;
/// the deployment then does not run here, and says why.
#[derive(Debug, PartialEq)]
pub struct Parsed {
    /// Or every problem of the document.
    pub spec: Result<DeploymentSpec, Vec<Problem>>,
    pub manifest: Result<Manifest, String>,
}

impl Parsed {
    pub fn read(document: &str, manifest: &str, defaults: &SpecDefaults) -> Parsed {
        Parsed {
            spec: DeploymentSpec::parse_with(document, defaults).map_err(|problems| problems.0),
            manifest: serde_json::from_str(manifest).map_err(|error| error.to_string()),
        }
    }

    /// It may leave rows of an outbox, or parked records, in the changelog; so may one that cannot be read.
    pub fn leaves_rows(&self) -> bool {
        let leaves = |spec: &DeploymentSpec| spec.failures.parks() || spec.has_outbox();
        self.spec.as_ref().ok().is_none_or(leaves)
    }
}

impl Registered {
    pub fn spec(&self) -> Option<&DeploymentSpec> {
        self.parsed.spec.as_ref().ok()
    }

    pub fn manifest(&self) -> Option<&Manifest> {
        self.parsed.manifest.as_ref().ok()
    }

    /// It has more than an offset: stores, parked records, ids, an outbox, or what an earlier version of this life may
    /// have left of either. So has one that cannot be read.
    pub fn keeps_state(&self) -> bool {
        self.has_stores() || self.holds_rows() || self.has_inbox()
    }

    /// Beside its offsets it has an inbox and nothing else, which stays true wherever it begins again. Rows of an
    /// outbox are something else: they go with the life, and an inbox that stayed would keep their records from
    /// being handled again.
    pub fn keeps_only_ids(&self) -> bool {
        self.has_inbox() && !self.has_stores() && !self.holds_rows()
    }

    /// It makes no state but ids itself, and an earlier version of this life may have left rows in the changelog.
    pub fn keeps_only_left_rows(&self) -> bool {
        self.ledger.may_hold_rows() && !self.parsed.leaves_rows() && !self.has_stores()
    }

    fn has_stores(&self) -> bool {
        self.manifest().is_none_or(|manifest| !manifest.stores.is_empty())
    }

    fn holds_rows(&self) -> bool {
        self.parsed.leaves_rows() || self.ledger.may_hold_rows()
    }

    fn has_inbox(&self) -> bool {
        self.spec().is_some_and(|spec| spec.inbox.is_some())
    }

    /// Number of the version that this is.
    pub fn version(&self) -> u64 {
        self.history.current().map_or(0, |version| version.number)
    }

    /// Topics of the inputs, in the manifest's order.
    pub fn topics(&self) -> Vec<String> {
        let (Some(spec), Some(manifest)) = (self.spec(), self.manifest()) else { return Vec::new() };
        let topic = |name| spec.inputs.get(name).map(|input| input.topic.clone()).unwrap_or_default();
        manifest.inputs.iter().map(topic).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registered(manifest: &str, more: &str) -> Registered {
        let document = format!("name: a\nmodule: a.wasm\ninputs: {{ in: {{ topic: in }} }}\n{more}");
        let parsed = Parsed::read(&document, manifest, &SpecDefaults::default());
        assert!(parsed.spec.is_ok() && parsed.manifest.is_ok(), "{parsed:?}");
        Registered {
            name: "a".into(),
            revision: 1,
            module: "m".into(),
            document,
            parsed: Arc::new(parsed),
            ledger: Arc::default(),
            incarnation: "i1".into(),
            deployed_at_ms: 0,
            first_partitions: 1,
            paused: true,
            retries: Retries::default(),
            history: History::default(),
        }
    }

    #[test]
    fn an_inbox_is_all_that_is_kept_only_without_stores_parked_records_and_outboxes() {
        let (bare, stores) = (r#"{"inputs":["in"]}"#, r#"{"inputs":["in"],"stores":[{"name":"s"}]}"#);
        let inbox = "inbox: { id: key, ttl: 1h }\n";
        let hook = "outputs: { hook: { http: { url: 'http://h/' } } }\n";
        let keeps = |manifest: &str, more: &[&str]| {
            let registered = registered(manifest, &more.concat());
            (registered.keeps_state(), registered.keeps_only_ids())
        };
        assert_eq!(keeps(bare, &[]), (false, false));
        assert_eq!(keeps(bare, &[inbox]), (true, true));
        assert_eq!(keeps(bare, &[inbox, hook]), (true, false), "undelivered rows are in the changelog");
        assert_eq!(keeps(bare, &[inbox, "failures: { then: park }\n"]), (true, false));
        assert_eq!(keeps(stores, &[inbox]), (true, false));
        assert_eq!(keeps(bare, &[hook]), (true, false));
    }

    #[test]
    fn what_an_earlier_version_left_in_the_changelog_is_state_of_the_one_that_makes_none() {
        for more in ["", "inbox: { id: key, ttl: 1h }\n"] {
            let mut left = registered(r#"{"inputs":["in"]}"#, more);
            assert!(!left.keeps_only_left_rows());
            Arc::make_mut(&mut left.ledger).accept_rows(true);
            assert!(left.keeps_state() && !left.keeps_only_ids() && left.keeps_only_left_rows(), "{more}");
        }
    }
}
