//! The one table of what may be called: each RPC with the role that it needs.
//!
//! What is not in it is refused, whoever asks. A test holds it to the contracts, so that an RPC cannot be
//! forgotten. To add one: a row in [`METHODS`], and for a request that names a deployment a line in the list
//! of [`Asked`] below.

use prost::{DecodeError, Message};
use tidemill_proto::v1 as proto;

use crate::config::document;
use crate::config::roles::Role;
use crate::node::TOPICS_MAX;

pub struct Method {
    /// As it is on the wire.
    pub path: &'static str,
    pub role: Role,
    pub about: About,
    /// It changes something, so that it leaves an audit line, refused or not.
    pub changes: bool,
}

/// Which deployments a call is about.
pub enum About {
    /// The one that its first message names. Later messages of a stream must not name another.
    One(Inspect),
    /// The one that its first message names, or each that the caller may see when it names none.
    OneOrSeen(Inspect),
    /// Each that the caller may see: the service answers by a [`crate::node::Handle`] that sees no other.
    Seen,
    /// None: it concerns the fleet as a whole, and needs a role that is not restricted to deployments.
    Fleet,
    /// None either: it concerns the node that its first message names.
    Node(Inspect),
    /// None either: it concerns the topics that its first message describes. Which of them is the caller's to change is
    /// for the service to say.
    Topics(Inspect),
}

/// Reads a first message, and writes the caller's name into it if there is one.
pub type Inspect = fn(&[u8], Option<&str>) -> Result<Inspected, DecodeError>;

/// What a first message says.
#[derive(Debug, Default)]
pub struct Inspected {
    /// Of the deployment, the node or the topics that it is about; empty = none.
    pub name: String,
    /// Who asks, as the message says, before anything was written into it.
    pub author: String,
    pub expected_revision: Option<u64>,
    pub dry_run: bool,
    /// The message again, when the caller's name was written into it.
    pub signed: Option<Vec<u8>>,
}

const fn reads(path: &'static str, role: Role, about: About) -> Method {
    Method { path, role, about, changes: false }
}

const fn changes(path: &'static str, role: Role, about: About) -> Method {
    Method { path, role, about, changes: true }
}

use About::{One, OneOrSeen, Seen};
use Role::{Admin, Deployer, Query, Viewer};

#[rustfmt::skip]
pub const METHODS: &[Method] = &[
    changes("/tidemill.v1.Deployments/Deploy", Deployer, One(inspect::<proto::DeployRequest>)),
    reads("/tidemill.v1.Deployments/Get", Viewer, One(inspect::<proto::GetDeploymentRequest>)),
    reads("/tidemill.v1.Deployments/List", Viewer, Seen),
    changes("/tidemill.v1.Deployments/Delete", Deployer, One(inspect::<proto::DeleteDeploymentRequest>)),
    reads("/tidemill.v1.Deployments/History", Viewer, One(inspect::<proto::HistoryRequest>)),
    reads("/tidemill.v1.Deployments/Diff", Viewer, One(inspect::<proto::DiffRequest>)),
    reads("/tidemill.v1.Deployments/Rollout", Viewer, One(inspect::<proto::RolloutRequest>)),
    changes("/tidemill.v1.Deployments/Rollback", Deployer, One(inspect::<proto::RollbackRequest>)),
    changes("/tidemill.v1.Deployments/Pause", Deployer, One(inspect::<proto::PauseRequest>)),
    changes("/tidemill.v1.Deployments/Resume", Deployer, One(inspect::<proto::ResumeRequest>)),
    changes("/tidemill.v1.Deployments/Reset", Deployer, One(inspect::<proto::ResetRequest>)),
    changes("/tidemill.v1.Deployments/Restart", Deployer, One(inspect::<proto::RestartRequest>)),
    reads("/tidemill.v1.Lag/Get", Viewer, OneOrSeen(inspect::<proto::GetLagRequest>)),
    reads("/tidemill.v1.State/Get", Query, One(inspect::<proto::GetStateRequest>)),
    reads("/tidemill.v1.State/GetMany", Query, One(inspect::<proto::GetManyStateRequest>)),
    reads("/tidemill.v1.State/Scan", Query, One(inspect::<proto::ScanStateRequest>)),
    reads("/tidemill.v1.Inbox/Get", Query, One(inspect::<proto::GetInboxRequest>)),
    changes("/tidemill.v1.State/Edit", Admin, One(inspect::<proto::EditStateRequest>)),
    reads("/tidemill.v1.Lag/Watch", Viewer, OneOrSeen(inspect::<proto::WatchLagRequest>)),
    reads("/tidemill.v1.Logs/Tail", Query, One(inspect::<proto::TailLogsRequest>)),
    reads("/tidemill.v1.Fleet/Nodes", Viewer, OneOrSeen(inspect::<proto::NodesRequest>)),
    changes("/tidemill.v1.Fleet/Drain", Admin, About::Node(inspect::<proto::DrainRequest>)),
    reads("/tidemill.v1.Fleet/Stores", Viewer, About::Fleet),
    reads("/tidemill.v1.DeadLetters/List", Query, One(inspect::<proto::ListLettersRequest>)),
    reads("/tidemill.v1.DeadLetters/Show", Query, One(inspect::<proto::ShowLetterRequest>)),
    reads("/tidemill.v1.DeadLetters/Count", Viewer, One(inspect::<proto::CountLettersRequest>)),
    changes("/tidemill.v1.DeadLetters/Redrive", Deployer, One(inspect::<proto::RedriveRequest>)),
    changes("/tidemill.v1.DeadLetters/Discard", Admin, One(inspect::<proto::DiscardLettersRequest>)),
    changes("/tidemill.v1.DeadLetters/Cancel", Deployer, One(inspect::<proto::CancelRedriveRequest>)),
    reads("/tidemill.v1.DeadLetters/Redrives", Viewer, One(inspect::<proto::RedrivesRequest>)),
    reads("/tidemill.v1.Outbox/List", Viewer, One(inspect::<proto::ListOutboxRequest>)),
    reads("/tidemill.v1.Outbox/Show", Query, One(inspect::<proto::ShowOutboxRequest>)),
    changes("/tidemill.v1.Outbox/Retry", Deployer, One(inspect::<proto::RetryOutboxRequest>)),
    changes("/tidemill.v1.Outbox/Discard", Admin, One(inspect::<proto::DiscardOutboxRequest>)),
    reads("/tidemill.v1.Outbox/CountDiscard", Admin, One(inspect::<proto::CountDiscardRequest>)),
    changes("/tidemill.v1.Outbox/Pause", Deployer, One(inspect::<proto::PauseOutboxRequest>)),
    changes("/tidemill.v1.Outbox/Resume", Deployer, One(inspect::<proto::ResumeOutboxRequest>)),
    reads("/tidemill.v1.Parked/List", Query, One(inspect::<proto::ListParkedRequest>)),
    changes("/tidemill.v1.Parked/Release", Deployer, One(inspect::<proto::ReleaseParkedRequest>)),
    changes("/tidemill.v1.Parked/Drop", Admin, One(inspect::<proto::DropParkedRequest>)),
    reads("/tidemill.v1.Parked/CountDrop", Admin, One(inspect::<proto::CountDropRequest>)),
    changes("/tidemill.v1.Topics/Apply", Deployer, About::Topics(inspect::<proto::ApplyTopicsRequest>)),
    reads("/grpc.health.v1.Health/Check", Viewer, Seen),
    reads("/grpc.health.v1.Health/Watch", Viewer, Seen),
    reads("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", Viewer, Seen),
    reads("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", Viewer, Seen),
];

pub fn find(path: &str) -> Option<&'static Method> {
    METHODS.iter().find(|method| method.path == path)
}

impl Method {
    /// `Deployments.Pause`: how people call it.
    pub fn name(&self) -> String {
        let (service, method) = self.path.rsplit_once('/').unwrap_or(("", self.path));
        let service = service.rsplit('.').next().unwrap_or_default();
        format!("{service}.{method}")
    }
}

/// A first message that names a deployment, a node or topics.
trait Asked: Message + Default {
    /// Empty = it names none.
    fn name(&self) -> String;

    /// Where it says who asks.
    fn author(&mut self) -> Option<&mut String> {
        None
    }

    fn expected_revision(&self) -> Option<u64> {
        None
    }

    fn dry_run(&self) -> bool {
        false
    }
}

fn inspect<T: Asked>(message: &[u8], name: Option<&str>) -> Result<Inspected, DecodeError> {
    let mut asked = T::decode(message)?;
    let said = asked.author().map(|author| author.clone()).unwrap_or_default();
    let mut inspected = Inspected {
        name: asked.name(),
        author: said,
        expected_revision: asked.expected_revision(),
        dry_run: asked.dry_run(),
        signed: None,
    };
    if let (Some(name), Some(author)) = (name, asked.author()) {
        name.clone_into(author);
        inspected.signed = Some(asked.encode_to_vec());
    }
    Ok(inspected)
}

/// `field` names what it is about; what follows is there too.
macro_rules! asked {
    ($($message:ident: $field:ident $(, $more:ident)*;)*) => {$(
        impl Asked for proto::$message {
            fn name(&self) -> String {
                self.$field.clone()
            }
            $(asked!(@ $more);)*
        }
    )*};
    (@ author) => {
        fn author(&mut self) -> Option<&mut String> {
            Some(&mut self.author)
        }
    };
    (@ expected_revision) => {
        fn expected_revision(&self) -> Option<u64> {
            self.expected_revision
        }
    };
    (@ dry_run) => {
        fn dry_run(&self) -> bool {
            self.dry_run
        }
    };
}

asked! {
    GetDeploymentRequest: name;
    DeleteDeploymentRequest: name, author, expected_revision;
    HistoryRequest: name;
    DiffRequest: name;
    RolloutRequest: name;
    RollbackRequest: name, author, expected_revision, dry_run;
    PauseRequest: name, author, expected_revision;
    ResumeRequest: name, author, expected_revision;
    ResetRequest: name, author, expected_revision, dry_run;
    RestartRequest: name, author, expected_revision;
    DrainRequest: node, author;
    GetInboxRequest: deployment;
    GetLagRequest: deployment;
    WatchLagRequest: deployment;
    TailLogsRequest: deployment;
    NodesRequest: deployment;
    GetStateRequest: deployment;
    GetManyStateRequest: deployment;
    ScanStateRequest: deployment;
    EditStateRequest: deployment, author;
    ListLettersRequest: deployment;
    ShowLetterRequest: deployment;
    CountLettersRequest: deployment;
    RedriveRequest: deployment, author;
    DiscardLettersRequest: deployment, author;
    CancelRedriveRequest: deployment, author;
    RedrivesRequest: deployment;
    ListOutboxRequest: deployment;
    ShowOutboxRequest: deployment;
    RetryOutboxRequest: deployment, author;
    DiscardOutboxRequest: deployment, author;
    CountDiscardRequest: deployment;
    PauseOutboxRequest: deployment, author;
    ResumeOutboxRequest: deployment, author;
    ListParkedRequest: deployment;
    ReleaseParkedRequest: deployment, author;
    DropParkedRequest: deployment, author;
    CountDropRequest: deployment;
}

/// Names its topics in its documents. The service takes no more of them than this looks at.
impl Asked for proto::ApplyTopicsRequest {
    fn name(&self) -> String {
        let documents = self.documents.iter().take(TOPICS_MAX);
        let names: Vec<String> = documents.filter_map(|text| document::name_of(text)).collect();
        names.join(", ")
    }

    fn author(&mut self) -> Option<&mut String> {
        Some(&mut self.author)
    }

    fn dry_run(&self) -> bool {
        self.dry_run
    }
}

/// Names its deployment in its document. Only the first message is a header: [`super::upload`] refuses
/// another one.
impl Asked for proto::DeployRequest {
    fn name(&self) -> String {
        let named = header(self).and_then(|header| document::name_of(&header.document));
        named.unwrap_or_default()
    }

    fn author(&mut self) -> Option<&mut String> {
        match &mut self.part {
            Some(proto::deploy_request::Part::Header(header)) => Some(&mut header.author),
            Some(proto::deploy_request::Part::Chunk(_)) | None => None,
        }
    }

    fn expected_revision(&self) -> Option<u64> {
        header(self).and_then(|header| header.expected_revision)
    }

    fn dry_run(&self) -> bool {
        header(self).is_some_and(|header| header.dry_run)
    }
}

fn header(request: &proto::DeployRequest) -> Option<&proto::DeployHeader> {
    match &request.part {
        Some(proto::deploy_request::Part::Header(header)) => Some(header),
        Some(proto::deploy_request::Part::Chunk(_)) | None => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use prost_types::FileDescriptorSet;

    use super::*;

    /// Every RPC that the server offers, as it is on the wire.
    fn offered() -> BTreeSet<String> {
        let sets = [
            proto::FILE_DESCRIPTOR_SET,
            tonic_health::pb::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
        ];
        let mut paths = BTreeSet::new();
        for set in sets {
            for file in FileDescriptorSet::decode(set).expect("a descriptor set").file {
                for service in &file.service {
                    let path = |method: &str| format!("/{}.{}/{method}", file.package(), service.name());
                    paths.extend(service.method.iter().map(|method| path(method.name())));
                }
            }
        }
        paths
    }

    #[test]
    fn every_rpc_has_its_row_and_every_row_its_rpc() {
        let offered = offered();
        let rows: BTreeSet<String> = METHODS.iter().map(|method| method.path.to_owned()).collect();
        assert_eq!(rows.len(), METHODS.len(), "a method has two rows");
        let missing: Vec<_> = offered.difference(&rows).collect();
        assert!(
            missing.is_empty(),
            "nobody could call {missing:#?}\nAdd a row for each to METHODS in runtime/src/control/methods.rs: \
             `reads` or `changes` (the latter leaves an audit line), the role that it needs, and One(inspect::<Request>) \
             if its first message names the deployment that it is about, with a line for that message in `asked!`"
        );
        let gone: Vec<_> = rows.difference(&offered).collect();
        assert!(gone.is_empty(), "these RPCs are not there: {gone:#?}");
    }
}
