//! The guard and the handshake before it, over real connections: every method by every role, tenants, calls
//! that are passed on, and certificates that are none.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::response::Response;
use prost::Message;
use prost_types::field_descriptor_proto::Type;
use prost_types::{DescriptorProto, FileDescriptorSet};
use tidemill_proto::v1 as proto;
use tidemill_test_support::certificates::{Authority, Pair, Term};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tonic::client::GrpcService;
use tonic::service::Routes;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Code, Status};

use super::guard::{Access, Guard};
use super::incoming::{Door, Established, Side};
use super::methods::{About, METHODS, Method};
use super::server::guarded;
use crate::config::node::TlsFiles;
use crate::config::roles::{Grant, Pattern, Role};
use crate::config::roles_file::Roles;
use crate::telemetry::Telemetry;
use crate::tls::client::{Client, Refused};
use crate::tls::own::Own;

/// What a service behind the guard was given, told in a header of its answer.
const GIVEN: &str = "x-given";

/// A guarded server that answers every call which reaches it, and who may call it.
struct World {
    directory: tempfile::TempDir,
    authority: Authority,
    address: SocketAddr,
    own: Arc<Own>,
    telemetry: Arc<Telemetry>,
    served: Arc<AtomicUsize>,
}

fn grant(san: &str, role: Role, deployments: &[&str]) -> Grant {
    let deployments = deployments.iter().map(|text| Pattern::new(*text)).collect();
    Grant { san: Pattern::new(san), role, deployments, topics: Vec::new(), secrets: Vec::new() }
}

/// Each role has a caller of its name; `tenant` is admin of `team-a-*`.
fn roles() -> Vec<Grant> {
    let mut roles: Vec<Grant> =
        Role::ALL.iter().map(|(name, role)| grant(&format!("spiffe://test/{name}"), *role, &[])).collect();
    roles.push(grant("tenant.test", Role::Admin, &["team-a-*"]));
    roles
}

impl World {
    async fn new() -> World {
        let directory = tempfile::tempdir().expect("a directory");
        let authority = Authority::new(directory.path(), "ca");
        let pair = authority.issue("own", &["127.0.0.1", "spiffe://test/node"]);
        let own = Own::load(&files(&pair, &authority.ca)).expect("good certificates");
        let (own, telemetry) = (Arc::new(own), Telemetry::new());
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let door = Door { side: Side::Grpc, tls: Some(Arc::clone(&own)), telemetry: Arc::clone(&telemetry) };
        let incoming = Established::new(listener, door);
        let served = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&served);
        let routes = Routes::from(Router::new().fallback(move |body: Bytes| async move {
            count.fetch_add(1, Ordering::Relaxed);
            let given: String = body.escape_ascii().map(char::from).collect();
            let answer = Response::builder().header("grpc-status", "0").header(GIVEN, given);
            answer.body(Body::empty()).expect("an answer")
        }));
        let guard = Guard::new(Access::Roles(Arc::new(Roles::new(roles(), None))), Arc::clone(&telemetry));
        let routes = Routes::from(guarded(routes, guard));
        tokio::spawn(Server::builder().add_routes(routes).serve_with_incoming(incoming.into_stream()));
        World { directory, authority, address, own, telemetry, served }
    }

    /// Somebody with a certificate of these names from the right CA.
    async fn caller(&self, name: &str) -> Caller {
        let pair = self.authority.issue("caller", &[name]);
        self.connect(&self.authority.ca, Some(&pair)).await.expect("a connection")
    }

    async fn connect(&self, ca: &Path, pair: Option<&Pair>) -> Result<Caller, String> {
        let pair = pair.map(|pair| (pair.cert.as_path(), pair.key.as_path()));
        let client = Client::from_files(ca, pair).map_err(|error| error.to_string())?;
        self.open(&client).await
    }

    async fn open(&self, client: &Client) -> Result<Caller, String> {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address)).expect("an address");
        match endpoint.connect_with_connector(client.connector()).await {
            Ok(channel) => Ok(Caller(channel)),
            Err(error) => Err(reason(&error)),
        }
    }

    /// A connection is closed before it is counted.
    async fn has_refused(&self, count: u64, what: &str) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.telemetry.node.tls_refused.get() < count && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(self.telemetry.node.tls_refused.get(), count, "{what}");
    }

    fn served(&self) -> usize {
        self.served.load(Ordering::Relaxed)
    }
}

fn files(pair: &Pair, client_ca: &Path) -> TlsFiles {
    TlsFiles { cert: pair.cert.clone(), key: pair.key.clone(), client_ca: client_ca.to_owned() }
}

/// What the connector says, below what the transport says.
fn reason(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(refused) = error.downcast_ref::<Refused>() {
            return refused.to_string();
        }
        cause = error.source();
    }
    format!("no reason: {error:?}")
}

struct Caller(Channel);

impl Caller {
    async fn call(&mut self, path: &str, message: &[u8]) -> (Code, String) {
        self.call_for(path, message, &[]).await
    }

    /// The code, and what the service was given or why it was not. `names` are those of whoever the
    /// caller says that he calls for.
    async fn call_for(&mut self, path: &str, message: &[u8], names: &[&str]) -> (Code, String) {
        let mut frame = vec![0];
        frame.extend((message.len() as u32).to_be_bytes());
        frame.extend(message);
        let mut request =
            http::Request::post(format!("http://node{path}")).header("content-type", "application/grpc");
        for name in names {
            request = request.header("tidemill-caller", *name);
        }
        let request = request.body(tonic::body::Body::new(Body::from(frame))).expect("a request");
        poll_fn(|cx| GrpcService::<tonic::body::Body>::poll_ready(&mut self.0, cx)).await.expect("connected");
        let response = GrpcService::call(&mut self.0, request).await.expect("an answer");
        let status = Status::from_header_map(response.headers()).expect("a status");
        let given = response.headers().get(GIVEN).map(|given| given.to_str().expect("ASCII").to_owned());
        (status.code(), given.unwrap_or_else(|| status.message().to_owned()))
    }
}

/// The first message of a method that names `deployment` (or a node or topic of that name), and an author if it has a
/// place for one.
fn naming(method: &Method, deployment: &str) -> Vec<u8> {
    if method.path.ends_with("/Deploy") {
        let document = format!("name: {deployment}\nmodule: m.wasm\n");
        let header = proto::DeployHeader { document, author: "mallory".into(), ..Default::default() };
        return proto::DeployRequest { part: Some(proto::deploy_request::Part::Header(header)) }
            .encode_to_vec();
    }
    if let About::Topics(_) = method.about {
        let documents = vec![format!("kind: topic\nname: {deployment}\n")];
        let request = proto::ApplyTopicsRequest { documents, author: "mallory".into(), ..Default::default() };
        return request.encode_to_vec();
    }
    let message = input_of(method.path);
    let mut bytes = Vec::new();
    for (names, value) in [(&["name", "deployment", "node"][..], deployment), (&["author"], "mallory")] {
        let field = message.field.iter().find(|field| names.contains(&field.name()));
        if let Some(field) = field.filter(|field| field.r#type() == Type::String && !value.is_empty()) {
            prost::encoding::string::encode(field.number() as u32, &value.to_owned(), &mut bytes);
        }
    }
    bytes
}

/// What a method of ours takes, by the contract.
fn input_of(path: &str) -> DescriptorProto {
    let set = FileDescriptorSet::decode(proto::FILE_DESCRIPTOR_SET).expect("a descriptor set");
    let services = set.file.iter().flat_map(|file| file.service.iter().map(move |service| (file, service)));
    let methods = services.flat_map(|(file, service)| {
        let named = move |method| format!("/{}.{}/{}", file.package(), service.name(), method);
        service.method.iter().map(move |method| (named(method.name()), method.input_type().to_owned()))
    });
    let Some((_, input)) = methods.into_iter().find(|(known, _)| known == path) else {
        return DescriptorProto::default(); // Not ours: health, reflection.
    };
    let short = input.rsplit('.').next().unwrap_or_default();
    let messages = set.file.iter().flat_map(|file| &file.message_type);
    messages.into_iter().find(|message| message.name() == short).expect("an input").clone()
}

#[tokio::test]
async fn every_method_is_for_the_roles_that_cover_it_and_for_nobody_else() {
    let world = World::new().await;
    for (name, role) in Role::ALL {
        let mut caller = world.caller(&format!("spiffe://test/{name}")).await;
        for method in METHODS {
            let (code, said) = caller.call(method.path, &naming(method, "any")).await;
            let expected = if role.covers(method.role) { Code::Ok } else { Code::PermissionDenied };
            assert_eq!(code, expected, "{} by {name}: {said}", method.path);
            if code != Code::Ok {
                assert!(said.contains(method.role.as_str()), "it says what would be needed: {said}");
            }
        }
        let (code, said) = caller.call("/tidemill.v1.Deployments/Format", &[]).await;
        assert_eq!(code, Code::PermissionDenied, "a method that nobody knows, by {name}: {said}");
    }
    let served = world.served();
    let mut stranger = world.caller("spiffe://test/stranger").await;
    for method in METHODS {
        assert_eq!(stranger.call(method.path, &naming(method, "any")).await.0, Code::PermissionDenied);
    }
    assert_eq!(world.served(), served);
    assert!(world.telemetry.node.control_refused.get() > METHODS.len() as u64);
}

#[tokio::test]
async fn a_tenant_reaches_no_deployment_but_his_own() {
    let world = World::new().await;
    let mut tenant = world.caller("tenant.test").await;
    for method in METHODS {
        let (own, others, none) = match method.about {
            About::One(_) => (Code::Ok, Code::PermissionDenied, Code::PermissionDenied),
            About::OneOrSeen(_) => (Code::Ok, Code::PermissionDenied, Code::Ok),
            About::Seen => (Code::Ok, Code::Ok, Code::Ok),
            About::Fleet | About::Node(_) | About::Topics(_) => {
                (Code::PermissionDenied, Code::PermissionDenied, Code::PermissionDenied)
            }
        };
        for (deployment, expected) in [("team-a-x", own), ("team-b-x", others), ("", none)] {
            let (code, said) = tenant.call(method.path, &naming(method, deployment)).await;
            assert_eq!(code, expected, "{} of {deployment:?}: {said}", method.path);
        }
    }
}

/// What names a deployment is looked at, and who asks is written by the guard wherever there is a place.
#[tokio::test]
async fn no_request_says_itself_who_asks() {
    let world = World::new().await;
    let mut admin = world.caller("spiffe://test/admin").await;
    let mut signed = 0;
    for method in METHODS {
        let input = input_of(method.path);
        let has = |name: &str| input.field.iter().any(|field| field.name() == name);
        let names = has("name") || has("deployment") || method.path.ends_with("/Deploy");
        let looked_at = matches!(method.about, About::One(_) | About::OneOrSeen(_));
        assert_eq!(
            names, looked_at,
            "{}: a request that names a deployment is One or OneOrSeen",
            method.path
        );
        let (code, given) = admin.call(method.path, &naming(method, "team-b-x")).await;
        assert_eq!(code, Code::Ok, "{given}");
        assert!(!given.contains("mallory"), "{}: the author is believed: {given}", method.path);
        let is_signed = has("author") || method.path.ends_with("/Deploy");
        assert_eq!(is_signed, method.changes, "{}: an author is for the audit line", method.path);
        if is_signed {
            assert!(given.contains("spiffe://test/admin") && given.contains("team-b-x"), "{given}");
            signed += 1;
        }
    }
    assert!(signed >= 7, "{signed} requests have an author");
}

#[tokio::test]
async fn a_call_is_passed_on_by_a_node_only_and_with_its_callers_rights() {
    let world = World::new().await;
    let (get, delete) = ("/tidemill.v1.Deployments/Get", "/tidemill.v1.Deployments/Delete");
    let find = |path| METHODS.iter().find(|method| method.path == path).expect("a method");
    let (get, delete) = (find(get), find(delete));
    let mut node = world.caller("spiffe://test/node").await;
    let for_tenant = ["tenant.test"];
    assert_eq!(node.call(get.path, &naming(get, "team-a-x")).await.0, Code::PermissionDenied);
    let (code, said) = node.call_for(delete.path, &naming(delete, "team-a-x"), &for_tenant).await;
    assert!(code == Code::Ok && said.contains("tenant.test"), "{said}");
    let (code, said) = node.call_for(get.path, &naming(get, "team-b-x"), &for_tenant).await;
    assert!(code == Code::PermissionDenied && said.contains("tenant.test"), "{said}");
    let (code, said) = node.call_for(get.path, &naming(get, "x"), &[""]).await;
    assert_eq!(code, Code::InvalidArgument, "{said}");

    let served = world.served();
    let mut admin = world.caller("spiffe://test/admin").await;
    let (code, said) = admin.call_for(get.path, &naming(get, "team-a-x"), &for_tenant).await;
    assert!(code == Code::PermissionDenied && said.contains("role node"), "{said}");
    assert_eq!(world.served(), served);
}

#[tokio::test]
async fn a_handshake_without_the_right_certificate_is_refused_and_nothing_is_served() {
    let world = World::new().await;
    let elsewhere = Authority::new(world.directory.path(), "elsewhere");
    let ca = &world.authority.ca;
    let name = ["spiffe://test/admin"];
    let expired = world.authority.issue_for("expired", &name, Term::Past);
    // What the client says, and how many handshakes the node has refused by then: a client does not show
    // a certificate that it knows to be of no use.
    let cases = [
        (ca, None, "it asks for a certificate, and none was shown", 1),
        (ca, Some(elsewhere.issue("stranger", &name)), "it does not know the CA", 2),
        (&elsewhere.ca, Some(world.authority.issue("misled", &name)), "not from a CA that is believed", 3),
        (ca, Some(expired), "is a certificate that expired at", 3),
        (ca, Some(world.authority.issue_for("early", &name, Term::Future)), "is not valid before", 3),
    ];
    for (ca, pair, expected, refused) in cases {
        let error = world.connect(ca, pair.as_ref()).await.map(|_| ()).expect_err(expected);
        assert!(error.contains(expected), "{expected}: {error}");
        world.has_refused(refused, expected).await;
    }
    assert_eq!(alert(world.address, &client_hello(0x0302)).await, Some(70), "TLS 1.1: protocol_version");
    world.has_refused(4, "TLS 1.1").await;
    assert_eq!(alert(world.address, &client_hello(0x0303)).await, None, "TLS 1.2, which goes on");
    world.has_refused(5, "a client that goes away").await;
    assert_eq!(
        alert(world.address, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await,
        Some(50),
        "no TLS: decode_error"
    );
    world.has_refused(6, "no TLS").await;
    assert_eq!(world.served(), 0);

    let list = "/tidemill.v1.Deployments/List";
    assert_eq!(world.caller("spiffe://test/admin").await.call(list, &[]).await.0, Code::Ok);
    assert_eq!(world.served(), 1);
}

/// Without a CA: what a caller is given is the node's own certificate, which makes nobody else believed.
#[tokio::test]
async fn a_caller_may_believe_a_node_by_its_very_certificate() {
    let world = World::new().await;
    let viewer = world.authority.issue("viewer", &["spiffe://test/viewer"]);
    let own = world.directory.path().join("own.pem");
    let mut caller = world.connect(&own, Some(&viewer)).await.expect("it is the node's");
    assert_eq!(caller.call("/tidemill.v1.Deployments/List", &[]).await.0, Code::Ok);
    let other = world.authority.issue("other", &["127.0.0.1"]).cert;
    let error = world.connect(&other, Some(&viewer)).await.map(|_| ()).expect_err("another node's");
    assert!(error.contains("not from a CA that is believed"), "{error}");
}

/// A hello of a client that speaks no more than this version.
fn client_hello(version: u16) -> Vec<u8> {
    let mut hello = version.to_be_bytes().to_vec();
    hello.extend([7; 32]); // The random.
    // No session; ECDHE-ECDSA with AES-GCM, and a suite that every old server had; no compression.
    hello.extend([0, 0, 4, 0xc0, 0x2b, 0xc0, 0x14, 1, 0]);
    // P-256, ECDSA with SHA-256, uncompressed points: nothing but the version can be objected to.
    hello.extend([0, 22, 0, 10, 0, 4, 0, 2, 0, 23, 0, 13, 0, 4, 0, 2, 4, 3, 0, 11, 0, 2, 1, 0]);
    let mut handshake = vec![1, 0, 0, hello.len() as u8];
    handshake.extend(hello);
    let mut record = vec![22, 3, 1, 0, handshake.len() as u8];
    record.extend(handshake);
    record
}

/// The alert that a server answers with.
async fn alert(address: SocketAddr, said: &[u8]) -> Option<u8> {
    let mut stream = TcpStream::connect(address).await.expect("the server listens");
    stream.write_all(said).await.expect("sent");
    let mut answer = Vec::new();
    // Nothing more comes, so that a server which is content so far ends it, too. It may also have ended the
    // connection before it has read everything.
    let _ = stream.shutdown().await;
    let _ = stream.read_to_end(&mut answer).await;
    match answer.as_slice() {
        [21, _, _, 0, 2, _fatal, description] => Some(*description),
        _ => None,
    }
}

#[tokio::test]
async fn certificates_are_exchanged_while_the_node_runs() {
    let world = World::new().await;
    let list = "/tidemill.v1.Deployments/List";
    let mut before = world.caller("spiffe://test/viewer").await;
    assert!(world.own.refresh().expect("the same").is_none());

    // A certificate whose key has not followed yet: the former pair stays.
    let next = Authority::new(world.directory.path(), "next");
    let pair = next.issue("next-own", &["127.0.0.1"]);
    let own = |name: &str| world.directory.path().join(name);
    std::fs::copy(&pair.cert, own("own.pem")).expect("copied");
    let error = world.own.refresh().expect_err("no pair").to_string();
    assert!(error.contains("own.key is not the private key of") && error.contains("own.pem"), "{error}");
    assert_eq!(world.caller("spiffe://test/viewer").await.call(list, &[]).await.0, Code::Ok);

    std::fs::copy(&pair.key, own("own.key")).expect("copied");
    std::fs::copy(&next.ca, own("ca.pem")).expect("copied");
    assert!(world.own.refresh().expect("a pair").is_some());
    // Who is there stays; who comes needs a certificate of the new CA.
    assert_eq!(before.call(list, &[]).await.0, Code::Ok);
    let old = world.authority.issue("old", &["spiffe://test/viewer"]);
    let error = world.connect(&next.ca, Some(&old)).await.map(|_| ()).expect_err("an old certificate");
    assert!(error.contains("it does not know the CA"), "{error}");
    let new = next.issue("new", &["spiffe://test/viewer"]);
    let mut after = world.connect(&next.ca, Some(&new)).await.expect("a connection");
    assert_eq!(after.call(list, &[]).await.0, Code::Ok);
}

#[tokio::test]
async fn a_certificate_that_expires_ends_what_its_holder_may() {
    const LIFE_S: u64 = 6;
    let world = World::new().await;
    let list = "/tidemill.v1.Deployments/List";
    let pair = world.authority.issue_for("soon", &["spiffe://test/viewer"], Term::Seconds(LIFE_S));
    let end = SystemTime::now() + Duration::from_secs(LIFE_S);
    let client =
        Client::from_files(&world.authority.ca, Some((&pair.cert, &pair.key))).expect("valid so far");
    let mut caller = world.open(&client).await.expect("valid so far");
    assert_eq!(caller.call(list, &[]).await.0, Code::Ok);

    // Terms are counted in seconds, and the last one belongs to them.
    while let Ok(left) = (end + Duration::from_secs(1)).duration_since(SystemTime::now()) {
        tokio::time::sleep(left + Duration::from_millis(1)).await;
    }
    let (code, said) = caller.call(list, &[]).await;
    assert!(code == Code::Unauthenticated && said.contains("expired"), "{code:?}: {said}");
    let error = world.open(&client).await.map(|_| ()).expect_err("expired");
    assert!(error.contains("has expired"), "{error}");
}
