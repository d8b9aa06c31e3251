//! What every call passes on its way in: does the node still take calls, has it too many, and how long
//! may this one take.
//!
//! A call runs on a task of its own that ends by itself. A caller who gives up, or whose connection is
//! cut, does not stop a change half-way, and the call keeps its place until its work is done: the bound
//! is one on what the node has in hand, not on who still waits for it.
//!
//! What the work waits for of its caller is bounded for that reason: a request that is not there when the
//! call's time is over ends in an error. Of all RPCs only reflection has a request that goes on, and its
//! clients ask again.
//!
//! One address has three quarters of the places at most, over all of its connections: the streams of a
//! connection bound only what its client waits for, and a call that is taken back keeps its place.
//!
//! Health is asked without a place and until the end: it is how others learn that the node stops.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use axum::body::{Body, BodyDataStream, Bytes};
use axum::extract::{Request, State};
use axum::http::HeaderValue;
use axum::middleware::Next;
use axum::response::Response;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Sleep, sleep_until};
use tokio_stream::Stream;
use tonic::{Code, Status};

use super::deadline::Deadline;
use crate::tls::connection::Peer;

/// Calls that a node has in hand at most. Half of the threads that tokio lends to what may block.
pub const CALLS_MAX: usize = 256;
/// Of these, of one address: whoever floods a node leaves the rest to others. Another node forwards what waits
/// for a position, of which there are half as many places, and has enough for everything else.
const CALLS_PER_ADDRESS_MAX: usize = CALLS_MAX / 4 * 3;

const HEALTH: &str = "/grpc.health.v1.Health/";
/// The header of an answer that is nothing but a status.
const STATUS: &str = "grpc-status";

#[derive(Clone)]
pub struct Admission {
    stopping: watch::Receiver<bool>,
    places: Arc<Semaphore>,
    held: Arc<Mutex<Held>>,
}

/// How many places an address has, of those that have any.
type Held = HashMap<IpAddr, usize>;

/// Of a call, until its work is done.
struct Place {
    address: IpAddr,
    held: Arc<Mutex<Held>>,
    _permit: OwnedSemaphorePermit,
}

impl Admission {
    /// From when `stopping` is true no call is taken any more.
    pub fn new(stopping: watch::Receiver<bool>) -> Admission {
        Admission { stopping, places: Arc::new(Semaphore::new(CALLS_MAX)), held: Arc::default() }
    }

    /// A place for a call from there, or why there is none.
    fn place(&self, address: IpAddr) -> Result<Place, Status> {
        let mut held = lock(&self.held);
        let count = held.get(&address).copied().unwrap_or(0);
        if count >= CALLS_PER_ADDRESS_MAX {
            return Err(Status::resource_exhausted(format!(
                "this node has {CALLS_PER_ADDRESS_MAX} calls from {address} in hand and takes no more of \
                 them; try again later"
            )));
        }
        let Ok(permit) = Arc::clone(&self.places).try_acquire_owned() else {
            return Err(Status::resource_exhausted(format!(
                "this node has {CALLS_MAX} calls in hand and takes no more; try again later"
            )));
        };
        held.insert(address, count + 1);
        Ok(Place { address, held: Arc::clone(&self.held), _permit: permit })
    }

    /// Returns when no call is in hand any more.
    pub async fn drained(&self) {
        // An error says that the semaphore is closed, which nobody does.
        let _ = self.places.acquire_many(CALLS_MAX as u32).await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut held = lock(&self.held);
        let left = held.get(&self.address).map_or(0, |count| count - 1);
        if left > 0 {
            held.insert(self.address, left);
        } else {
            held.remove(&self.address);
        }
    }
}

/// A panic elsewhere leaves counts that are still whole: every critical section here is one step.
fn lock(held: &Mutex<Held>) -> MutexGuard<'_, Held> {
    held.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where a call comes from. Of IPv6 the network, because a host has as many addresses in it as it likes.
fn origin(request: &Request) -> IpAddr {
    // A call without a connection is the guard's to refuse.
    let Some(peer) = request.extensions().get::<Peer>() else { return Ipv4Addr::UNSPECIFIED.into() };
    match peer.address.ip().to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        address => address,
    }
}

/// What a caller sends, for as long as its call has time.
struct InTime {
    body: BodyDataStream,
    over: Pin<Box<Sleep>>,
    deadline: Deadline,
}

impl InTime {
    fn new(body: Body, deadline: Deadline) -> InTime {
        let over = Box::pin(sleep_until(deadline.until().into()));
        InTime { body: body.into_data_stream(), over, deadline }
    }
}

impl Stream for InTime {
    type Item = Result<Bytes, axum::Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        // First, so that who sends a little again and again does not go on for ever either.
        if self.over.as_mut().poll(cx).is_ready() {
            let reason = format!(
                "the request did not arrive whole within {:?}; send it again",
                self.deadline.allowed()
            );
            return Poll::Ready(Some(Err(axum::Error::new(Status::deadline_exceeded(reason)))));
        }
        Pin::new(&mut self.body).poll_next(cx)
    }
}

/// Lets a call in, or answers why not.
pub async fn admit(State(admission): State<Admission>, request: Request, next: Next) -> Response {
    let path = request.uri().path();
    if path.starts_with(HEALTH) {
        return next.run(request).await;
    }
    if *admission.stopping.borrow() {
        return refuse(Status::unavailable("this node is stopping; ask another one, or try again"));
    }
    let place = match admission.place(origin(&request)) {
        Ok(place) => place,
        Err(status) => return refuse(status),
    };
    let deadline = Deadline::of_call(path, request.headers());
    let mut request = request.map(|body| Body::from_stream(InTime::new(body, deadline)));
    request.extensions_mut().insert(deadline);
    let call = tokio::spawn(async move {
        let answer = next.run(request).await;
        drop(place);
        answer
    });
    match tokio::time::timeout_at(deadline.answer_by().into(), call).await {
        Ok(Ok(answer)) => translated(answer),
        Ok(Err(_panicked)) => refuse(Status::internal("the call failed inside the node; its log says why")),
        Err(_) => refuse(Status::deadline_exceeded(format!(
            "no answer within {:?}; what the call asks for may still happen",
            deadline.allowed()
        ))),
    }
}

fn refuse(status: Status) -> Response {
    status.into_http::<tonic::body::Body>().map(Body::new)
}

/// tonic says OUT_OF_RANGE of a message beyond its limit, for which gRPC has RESOURCE_EXHAUSTED.
fn translated(mut answer: Response) -> Response {
    let headers = answer.headers_mut();
    if headers.get(STATUS).is_some_and(|code| Code::from_bytes(code.as_bytes()) == Code::OutOfRange) {
        headers.insert(STATUS, HeaderValue::from(Code::ResourceExhausted as i32));
    }
    answer
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::net::SocketAddr;
    use std::time::{Duration, Instant};

    use axum::Router;
    use axum::middleware::from_fn_with_state;
    use tidemill_proto::v1 as proto;
    use tokio::task::JoinSet;
    use tokio_stream::StreamExt;
    use tonic::client::GrpcService;
    use tonic::service::Routes;

    use super::*;
    use crate::control::guard::{Access, Guard};
    use crate::control::server::guarded;
    use crate::control::streams::Answers;
    use crate::telemetry::Telemetry;

    /// Read by tonic alone, and by the guard before it.
    const PATHS: [&str; 2] = ["/tidemill.v1.Lag/Get", "/tidemill.v1.Deployments/Pause"];

    struct Answering;

    #[tonic::async_trait]
    impl proto::lag_server::Lag for Answering {
        async fn get(
            &self,
            _: tonic::Request<proto::GetLagRequest>,
        ) -> Result<tonic::Response<proto::GetLagResponse>, Status> {
            Ok(tonic::Response::new(proto::GetLagResponse::default()))
        }

        type WatchStream = Answers<proto::WatchLagResponse>;

        async fn watch(
            &self,
            _: tonic::Request<proto::WatchLagRequest>,
        ) -> Result<tonic::Response<Self::WatchStream>, Status> {
            Err(Status::unimplemented("nobody watches"))
        }
    }

    /// What a node puts around its services; the sender keeps it running.
    fn node() -> (watch::Sender<bool>, Admission, Router) {
        let (stop, stopping) = watch::channel(false);
        let admission = Admission::new(stopping);
        let routes = Routes::new(proto::lag_server::LagServer::new(Answering));
        let guard = Guard::new(Access::Open, Telemetry::new());
        let router = guarded(routes, guard).layer(from_fn_with_state(admission.clone(), admit));
        (stop, admission, router)
    }

    async fn call(router: Router, path: &str, timeout: &str, body: Body) -> Code {
        call_from(1, router, path, timeout, body).await
    }

    /// From that host of a network.
    async fn call_from(host: u8, mut router: Router, path: &str, timeout: &str, body: Body) -> Code {
        let peer = Peer { address: SocketAddr::from(([127, 0, 0, host], 1)), certificate: None };
        let request = Request::post(path)
            .header("content-type", "application/grpc")
            .header("grpc-timeout", timeout)
            .extension(peer);
        let request = request.body(body).expect("a request");
        let answer = GrpcService::call(&mut router, request).await.expect("an answer");
        // An answer that is more than its status has that in its trailers.
        Status::from_header_map(answer.headers()).map_or(Code::Ok, |status| status.code())
    }

    fn whole() -> Body {
        Body::from(vec![0; 5])
    }

    /// Nothing, and no end.
    fn half_open() -> Body {
        Body::from_stream(tokio_stream::pending::<Result<Bytes, Infallible>>())
    }

    /// A message of a mebibyte, byte by byte.
    fn trickling() -> Body {
        let prefix = tokio_stream::once(Bytes::from_static(&[0, 0, 16, 0, 0]));
        let bytes = tokio_stream::iter(std::iter::repeat(Bytes::from_static(&[0])));
        Body::from_stream(prefix.chain(bytes.throttle(Duration::from_millis(5))).map(Ok::<_, Infallible>))
    }

    /// Waits until no more than so many places are free.
    async fn until_free(admission: &Admission, places: usize) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while admission.places.available_permits() > places && Instant::now() < deadline {
            tokio::task::yield_now().await;
        }
    }

    async fn is_drained(admission: &Admission) {
        tokio::time::timeout(Duration::from_secs(30), admission.drained())
            .await
            .expect("every place is free");
    }

    #[tokio::test]
    async fn calls_whose_requests_never_come_give_their_places_back() {
        let (_stop, admission, router) = node();
        assert_eq!(call(router.clone(), PATHS[0], "30S", whole()).await, Code::Ok);
        let mut calls = JoinSet::new();
        for n in 0..CALLS_MAX {
            let host = 1 + (n / CALLS_PER_ADDRESS_MAX) as u8;
            calls.spawn(call_from(host, router.clone(), PATHS[n % 2], "2S", half_open()));
        }
        until_free(&admission, 0).await;
        assert_eq!(call_from(3, router.clone(), PATHS[0], "30S", whole()).await, Code::ResourceExhausted);
        assert!(calls.join_all().await.iter().all(|code| *code == Code::DeadlineExceeded));
        is_drained(&admission).await;
        assert_eq!(call(router, PATHS[0], "30S", whole()).await, Code::Ok);
    }

    #[tokio::test]
    async fn an_address_has_three_quarters_of_the_places_and_leaves_the_others_to_others() {
        let (_stop, admission, router) = node();
        let mut calls = JoinSet::new();
        for n in 0..CALLS_PER_ADDRESS_MAX {
            calls.spawn(call(router.clone(), PATHS[n % 2], "2S", half_open()));
        }
        until_free(&admission, CALLS_MAX - CALLS_PER_ADDRESS_MAX).await;
        assert_eq!(call(router.clone(), PATHS[0], "30S", whole()).await, Code::ResourceExhausted);
        assert_eq!(call_from(2, router.clone(), PATHS[0], "30S", whole()).await, Code::Ok);
        assert!(calls.join_all().await.iter().all(|code| *code == Code::DeadlineExceeded));
        is_drained(&admission).await;
        assert_eq!(call(router, PATHS[0], "30S", whole()).await, Code::Ok);
        is_drained(&admission).await;
        assert!(lock(&admission.held).is_empty(), "nothing is kept of who has gone");
    }

    #[test]
    fn a_network_of_ipv6_is_one_caller_and_so_is_an_address_whatever_the_listener_calls_it() {
        let from = |address: &str| {
            let address = SocketAddr::new(address.parse().expect("an address"), 1);
            let request = Request::get("/").extension(Peer { address, certificate: None });
            origin(&request.body(Body::empty()).expect("a request")).to_string()
        };
        assert_eq!(from("10.1.2.3"), "10.1.2.3");
        assert_eq!(from("::ffff:10.1.2.3"), "10.1.2.3");
        assert_eq!(from("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
    }

    #[tokio::test]
    async fn a_request_that_comes_byte_by_byte_has_no_more_time_than_another() {
        for path in PATHS {
            let (_stop, admission, router) = node();
            assert_eq!(call(router, path, "100m", trickling()).await, Code::DeadlineExceeded, "{path}");
            is_drained(&admission).await;
        }
    }
}
