//! Who may do what: the `roles:` of a node's file. Deny by default: who is in no entry may nothing.
//!
//! ```yaml
//! roles:
//!   - { san: "spiffe://example.org/tidemill/node/*", role: node }
//!   - { san: "*.ops.example.org", role: admin }
//!   - { san: "spiffe://example.org/team-a/*", role: deployer, deployments: [ "team-a-*" ], topics: [ "team-a.*" ] }
//! ```
//!
//! A list that is not there is no restriction, but for `secrets` beside another one: see [`Grant::secrets`].
//!
//! An entry with a `:` is about names of the kind URI, every other one about DNS names; `*` stands for any
//! characters of one segment, that is, not for a `/` in a URI and not for a `.` in a DNS name.

use std::fmt;
use std::path::{Component, Path};
use std::sync::Arc;

use super::problem::Report;
use super::section::{Field, Section};
use super::yaml::{Node, Yaml};

/// What an entry may say.
pub(super) const ENTRY: &str = "{ san, role, deployments, topics, secrets }";

/// What a caller may do, or a method needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Sees deployments, their versions, lag and nodes; never what records or state hold.
    Viewer,
    /// Reads what handlers keep and say, too.
    Query,
    /// Changes what runs; sees what a viewer sees.
    Deployer,
    /// Everything, except to speak for others.
    Admin,
    /// Is another node of the fleet, which passes on calls of others, and may nothing else.
    Node,
}

impl Role {
    pub const ALL: [(&'static str, Role); 5] = [
        ("viewer", Role::Viewer),
        ("query", Role::Query),
        ("deployer", Role::Deployer),
        ("admin", Role::Admin),
        ("node", Role::Node),
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Role::Viewer => "viewer",
            Role::Query => "query",
            Role::Deployer => "deployer",
            Role::Admin => "admin",
            Role::Node => "node",
        }
    }

    /// Whether who has this role may do what `needed` allows.
    pub fn covers(self, needed: Role) -> bool {
        match (self, needed) {
            (Role::Node, needed) => needed == Role::Node,
            (_, Role::Node) => false,
            (Role::Admin, _) | (_, Role::Viewer) => true,
            (role, needed) => role == needed,
        }
    }
}

/// A text with `*` for any characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(String);

impl Pattern {
    pub fn new(text: impl Into<String>) -> Pattern {
        Pattern(text.into())
    }

    /// `barrier` is what a `*` does not stand for.
    fn matches(&self, text: &str, barrier: Option<u8>) -> bool {
        let (pattern, text) = (self.0.as_bytes(), text.as_bytes());
        let (mut at, mut read) = (0, 0);
        // Behind the last `*`, and what it has taken so far ends here. Only the last one need be tried
        // again: none can take a barrier, and what an earlier one gives up the last could take as well.
        let mut star = None;
        while read < text.len() {
            if pattern.get(at) == Some(&b'*') {
                at += 1;
                star = Some((at, read));
            } else if pattern.get(at) == Some(&text[read]) {
                at += 1;
                read += 1;
            } else if let Some((behind, taken)) = star.filter(|&(_, taken)| Some(text[taken]) != barrier) {
                star = Some((behind, taken + 1));
                at = behind;
                read = taken + 1;
            } else {
                return false;
            }
        }
        pattern[at..].iter().all(|&byte| byte == b'*')
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A name that a certificate gives its holder: an entry of its SAN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Name {
    Uri(String),
    /// In lower case.
    Dns(String),
}

impl Name {
    /// As [`fmt::Display`] writes it: a URI always has a `:`, a DNS name never has.
    pub fn parse(text: &str) -> Name {
        if text.contains(':') { Name::Uri(text.to_owned()) } else { Name::Dns(text.to_ascii_lowercase()) }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Name::Uri(text) | Name::Dns(text) => f.write_str(text),
        }
    }
}

/// One entry of `roles:`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    pub san: Pattern,
    pub role: Role,
    /// Empty = every deployment, and what concerns the fleet as a whole.
    pub deployments: Vec<Pattern>,
    /// Topics that documents deployed by it may name, and that it may change if it is for every deployment; empty =
    /// every one that the node may use.
    pub topics: Vec<Pattern>,
    /// Files and variables of a node that documents deployed by it may name; empty = none if one of the other lists is
    /// given, or else all that a document may name at all. For whoever has a node's own key is the node, and no
    /// restriction holds him any more.
    pub secrets: Vec<Pattern>,
}

impl Grant {
    pub fn is_for(&self, name: &Name) -> bool {
        let is_uri = self.san.0.contains(':');
        match name {
            Name::Uri(uri) => is_uri && self.san.matches(uri, Some(b'/')),
            Name::Dns(host) => !is_uri && self.san.matches(host, Some(b'.')),
        }
    }
}

impl fmt::Display for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is {}", self.san, self.role.as_str())?;
        let lists =
            [(" of", &self.deployments), (" with topics", &self.topics), (" with secrets", &self.secrets)];
        for (word, patterns) in lists {
            for (at, pattern) in patterns.iter().enumerate() {
                write!(f, "{} {pattern}", if at == 0 { word } else { "," })?;
            }
        }
        Ok(())
    }
}

/// The deployments that a call may be about and see, the topics that it may bind them to, and the secrets that it may have
/// them given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// Every one, and the fleet as a whole.
    All,
    Only(Arc<[Share]>),
}

/// What one grant that has a list adds to a scope. An empty one stands for all deployments or topics, and for no secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    deployments: Vec<Pattern>,
    topics: Vec<Pattern>,
    secrets: Vec<Pattern>,
}

impl Share {
    fn covers(&self, deployment: &str) -> bool {
        is_among(&self.deployments, deployment)
    }

    fn gives(&self, secret: &str) -> bool {
        self.secrets.iter().any(|pattern| pattern.matches(secret, None)) && !goes_up(secret)
    }
}

/// Whether a name is meant; an empty list means every one.
fn is_among(patterns: &[Pattern], name: &str) -> bool {
    patterns.is_empty() || patterns.iter().any(|pattern| pattern.matches(name, None))
}

/// It begins like one file and may end at any other.
fn goes_up(path: &str) -> bool {
    Path::new(path).components().any(|component| component == Component::ParentDir)
}

impl Scope {
    /// Nothing at all.
    pub fn none() -> Scope {
        Scope::Only(Arc::new([]))
    }

    /// What these names may do that need `role`.
    pub fn of(grants: &[Grant], names: &[Name], role: Role) -> Scope {
        let mut only = Vec::new();
        for grant in grants.iter().filter(|grant| grant.role.covers(role)) {
            if !names.iter().any(|name| grant.is_for(name)) {
                continue;
            }
            let Grant { deployments, topics, secrets, .. } = grant.clone();
            if deployments.is_empty() && topics.is_empty() && secrets.is_empty() {
                return Scope::All;
            }
            only.push(Share { deployments, topics, secrets });
        }
        Scope::Only(only.into())
    }

    pub fn is_none(&self) -> bool {
        matches!(self, Scope::Only(only) if only.is_empty())
    }

    pub fn covers(&self, deployment: &str) -> bool {
        match self {
            Scope::All => true,
            Scope::Only(only) => only.iter().any(|share| share.covers(deployment)),
        }
    }

    /// Every deployment, and so the fleet as a whole.
    pub fn covers_fleet(&self) -> bool {
        match self {
            Scope::All => true,
            Scope::Only(only) => only.iter().any(|share| share.deployments.is_empty()),
        }
    }

    /// Whether the topic itself may be made and changed. It is no deployment's own, whoever reads and writes it, so who
    /// may change some deployments only may change no topic.
    pub fn changes(&self, topic: &str) -> bool {
        match self {
            Scope::All => true,
            Scope::Only(only) => {
                only.iter().any(|share| share.deployments.is_empty() && is_among(&share.topics, topic))
            }
        }
    }

    /// Whether a document of this deployment may name the topic.
    pub fn binds(&self, deployment: &str, topic: &str) -> bool {
        match self {
            Scope::All => true,
            Scope::Only(only) => {
                only.iter().any(|share| share.covers(deployment) && is_among(&share.topics, topic))
            }
        }
    }

    /// Whether a document of this deployment may name that file or variable of a node, whose content goes where the
    /// document says.
    pub fn gives(&self, deployment: &str, secret: &str) -> bool {
        match self {
            Scope::All => true,
            Scope::Only(only) => only.iter().any(|share| share.covers(deployment) && share.gives(secret)),
        }
    }
}

/// Reads the list; what is wrong is reported, and left out.
pub(super) fn read(node: &Node, line: u32, report: &Report) -> Vec<(u32, Grant)> {
    let Yaml::List(items) = &node.value else {
        let message = format!("expected a list of {ENTRY}, found {}", node.value.kind());
        report.add(Some(line), "roles", message);
        return Vec::new();
    };
    if items.is_empty() {
        report.add(Some(line), "roles", "is empty: nobody may do anything; give at least one entry");
    }
    let grant = |(at, item): (usize, &Node)| {
        let mut section = Section::open(item, &format!("roles[{at}]"), item.line, report)?;
        let san = section.take("san");
        if san.is_none() {
            section.missing("san", "the name in the certificate, for example spiffe://example.org/team-a/*");
        }
        let role = section.take("role");
        if role.is_none() {
            section.missing("role", "viewer, query, deployer, admin or node");
        }
        let role =
            role.map(|_| section.choice("role", None, &Role::ALL.map(|(name, role)| (name, Some(role)))));
        let mut list =
            |name| section.take(name).map_or_else(|| Some(Vec::new()), |field| patterns(&field, name));
        let (deployments, topics, secrets) = (list("deployments"), list("topics"), list("secrets"));
        let misplaced = |name: &str, list: &Option<Vec<Pattern>>, message: &str| {
            if list.as_ref().is_some_and(|list| !list.is_empty()) {
                report.add(section.line_of(name), &section.sub_path(name), message);
            }
        };
        if let Some(Some(role)) = role {
            if role == Role::Node {
                let message = "does not go with role node: a node passes on calls about every deployment";
                misplaced("deployments", &deployments, message);
            }
            if !role.covers(Role::Deployer) {
                let message = format!("does not go with role {}: it deploys nothing", role.as_str());
                misplaced("topics", &topics, &message);
                misplaced("secrets", &secrets, &message);
            }
        }
        section.finish();
        let (san, role) = (san_pattern(&san?)?, role??);
        let (deployments, topics, secrets) = (deployments?, topics?, secrets?);
        Some((item.line, Grant { san, role, deployments, topics, secrets }))
    };
    items.iter().enumerate().filter_map(grant).collect()
}

fn san_pattern(field: &Field<'_>) -> Option<Pattern> {
    let text = field.text()?;
    // A bare `*` would be everybody who has a certificate: most likely a slip, and never deny by default.
    if text.is_empty() || text.chars().all(|c| c == '*') {
        field.refuse("says nothing about who it is: write a URI or DNS name, with `*` for parts of it");
        return None;
    }
    let is_uri = text.contains(':');
    Some(Pattern(if is_uri { text } else { text.to_ascii_lowercase() }))
}

/// Names or patterns of `what`; an empty list would read as "none" and mean "all".
fn patterns(field: &Field<'_>, what: &str) -> Option<Vec<Pattern>> {
    let Yaml::List(items) = &field.node.value else {
        field.refuse(format!("expected a list of names, found {}", field.node.value.kind()));
        return None;
    };
    let texts: Option<Vec<Pattern>> = items
        .iter()
        .map(|item| match &item.value {
            Yaml::Text(text) if !text.is_empty() => Some(Pattern(text.clone())),
            _ => None,
        })
        .collect();
    match texts {
        Some(texts) if !texts.is_empty() => Some(texts),
        _ => {
            field.refuse(format!(
                "expected names of {what}, with `*` for any characters; leave it out for all of them"
            ));
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant(san: &str, role: Role, deployments: &[&str], topics: &[&str]) -> Grant {
        let patterns = |texts: &[&str]| texts.iter().map(|text| Pattern::new(*text)).collect();
        let (deployments, topics) = (patterns(deployments), patterns(topics));
        Grant { san: Pattern::new(san), role, deployments, topics, secrets: Vec::new() }
    }

    #[test]
    fn a_star_stays_within_its_segment_of_a_san_and_runs_through_names_of_deployments() {
        let cases = [
            ("spiffe://o/team-a/*", "spiffe://o/team-a/ci", true),
            ("spiffe://o/team-a/*", "spiffe://o/team-a/ci/deep", false),
            ("spiffe://o/team-a/*", "spiffe://o/team-a", false),
            ("spiffe://o/*/ci", "spiffe://o/team-a/ci", true),
            ("spiffe://o/*a*/ci", "spiffe://o/team-a-b/ci", true),
            ("spiffe://o/*a/ci", "spiffe://o/a/b/a/ci", false),
            ("*.example.org", "a.example.org", true),
            ("*.example.org", "a.b.example.org", false),
            ("*.example.org", "example.org", false),
            ("ci.example.org", "CI.Example.org", true),
            // A pattern is about one kind of name only.
            ("*example.org", "spiffe://example.org", false),
            ("spiffe:*", "spiffe", false),
        ];
        for (san, name, expected) in cases {
            let grant = grant(san, Role::Admin, &[], &[]);
            assert_eq!(grant.is_for(&Name::parse(name)), expected, "{san} for {name}");
        }
        for (pattern, name, expected) in [
            ("team-a-*", "team-a-x.y", true),
            ("team-a-*", "team-ab", false),
            ("*", "", true),
            ("a*a", "a", false),
        ] {
            assert_eq!(Pattern::new(pattern).matches(name, None), expected, "{pattern} of {name}");
        }
    }

    #[test]
    fn a_role_covers_what_is_below_it_and_a_node_only_itself() {
        let covered = |role: Role| {
            let names = Role::ALL.into_iter().filter(|(_, needed)| role.covers(*needed));
            names.map(|(name, _)| name).collect::<Vec<_>>()
        };
        assert_eq!(covered(Role::Viewer), ["viewer"]);
        assert_eq!(covered(Role::Query), ["viewer", "query"]);
        assert_eq!(covered(Role::Deployer), ["viewer", "deployer"]);
        assert_eq!(covered(Role::Admin), ["viewer", "query", "deployer", "admin"]);
        assert_eq!(covered(Role::Node), ["node"]);
    }

    #[test]
    fn grants_add_up_and_an_unrestricted_one_is_everything() {
        let grant = |role, deployments: &[&str]| grant("a.b", role, deployments, &[]);
        let grants = [grant(Role::Deployer, &["x-*"]), grant(Role::Admin, &["y"]), grant(Role::Query, &[])];
        let names = [Name::parse("a.b")];
        let scope = Scope::of(&grants, &names, Role::Deployer);
        assert!(scope.covers("x-1") && scope.covers("y") && !scope.covers("z"), "{scope:?}");
        assert_eq!(Scope::of(&grants, &names, Role::Viewer), Scope::All);
        assert!(Scope::of(&grants, &names, Role::Node).is_none());
        assert!(Scope::of(&grants, &[Name::parse("other")], Role::Viewer).is_none());
    }

    #[test]
    fn a_document_may_name_the_topics_of_the_grants_for_its_deployment_only() {
        let grant = |role, deployments: &[&str], topics: &[&str]| grant("a.b", role, deployments, topics);
        let names = [Name::parse("a.b")];
        let scope = |grants: &[Grant]| Scope::of(grants, &names, Role::Deployer);

        let two = scope(&[
            grant(Role::Deployer, &["x-*"], &["x.*", "shared"]),
            grant(Role::Admin, &["y"], &[]),
            grant(Role::Viewer, &[], &[]),
        ]);
        for (deployment, topic, expected) in [
            ("x-1", "x.a.b", true),
            ("x-1", "shared", true),
            ("x-1", "shared-2", false),
            ("x-1", "y.a", false),
            ("y", "x.a", true),
            ("z", "x.a", false),
        ] {
            assert_eq!(two.binds(deployment, topic), expected, "{topic} by {deployment}");
        }
        assert!(!two.covers_fleet());

        let topics_only = scope(&[grant(Role::Deployer, &[], &["x.*"])]);
        assert!(topics_only.covers("z") && topics_only.covers_fleet());
        assert!(topics_only.binds("z", "x.a") && !topics_only.binds("z", "y.a"));
        assert!(Scope::All.binds("z", "y.a"));

        assert!(topics_only.changes("x.a") && !topics_only.changes("y.a") && Scope::All.changes("y.a"));
        assert!(!two.changes("x.a"), "a topic of a deployment's is others' as well");
    }

    #[test]
    fn a_document_may_name_the_secrets_of_the_grants_for_its_deployment_only_and_none_by_a_detour() {
        let with = |secrets: &[&str], grant: Grant| {
            let secrets = secrets.iter().map(|text| Pattern::new(*text)).collect();
            Grant { secrets, ..grant }
        };
        let of = |grants: &[Grant]| Scope::of(grants, &[Name::parse("a.b")], Role::Deployer);
        let x = with(&["/run/secrets/x/*", "OUTBOX_X_*"], grant("a.b", Role::Deployer, &["x-*"], &[]));
        let y = grant("a.b", Role::Deployer, &["y"], &[]);
        let z = with(&["*"], grant("a.b", Role::Deployer, &["z"], &["t"]));
        let scope = of(&[x, y, z]);
        for (deployment, secret, expected) in [
            ("x-1", "/run/secrets/x/hook", true),
            ("x-1", "OUTBOX_X_KEY", true),
            ("x-1", "OUTBOX_Y_KEY", false),
            ("x-1", "/etc/tidemill/node.key", false),
            ("x-1", "/run/secrets/x/../../../etc/tidemill/node.key", false),
            ("y", "/run/secrets/x/hook", false),
            ("y", "OUTBOX_X_KEY", false),
            ("z", "/etc/tidemill/node.key", true),
            ("a", "/run/secrets/x/hook", false),
        ] {
            assert_eq!(scope.gives(deployment, secret), expected, "{secret} for {deployment}");
        }
        let topics = of(&[grant("a.b", Role::Deployer, &[], &["x.*"])]);
        assert!(!topics.gives("z", "/etc/tidemill/node.key"), "or else any topic is his, by the node's key");
        let whole = of(&[with(&["OUTBOX_*"], grant("a.b", Role::Deployer, &[], &[]))]);
        assert!(whole.covers_fleet() && whole.changes("t") && !whole.gives("z", "/etc/passwd"));
        let unrestricted = of(&[grant("a.b", Role::Deployer, &[], &[])]);
        assert!(unrestricted.gives("z", "/etc/passwd"));
    }
}
