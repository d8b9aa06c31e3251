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
}

impl Registered {
    pub fn spec(&self) -> Option<&DeploymentSpec> {
        self.parsed.spec.as_ref().ok()
    }

    pub fn manifest(&self) -> Option<&Manifest> {
        self.parsed.manifest.as_ref().ok()
    }

    /// It has more than an offset: stores, parked records, ids, an outbox. So has one that cannot be read.
    pub fn keeps_state(&self) -> bool {
        let in_stores = self.manifest().is_none_or(|manifest| !manifest.stores.is_empty());
        let in_rows =
            |spec: &DeploymentSpec| spec.failures.parks() || spec.inbox.is_some() || spec.has_outbox();
        in_stores || self.spec().is_none_or(in_rows)
    }

    /// Beside its offsets it has an inbox and nothing else, which stays true wherever it begins again.
    pub fn keeps_only_ids(&self) -> bool {
        let has_stores = self.manifest().is_none_or(|manifest| !manifest.stores.is_empty());
        !has_stores && self.spec().is_some_and(|spec| spec.inbox.is_some() && !spec.failures.parks())
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
