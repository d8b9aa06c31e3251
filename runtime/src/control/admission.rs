//! What every call passes on its way in: does the node still take calls, has it too many, and how long
//! may this one take.
//!
//! A call runs on a task of its own that ends by itself. A caller who gives up, or whose connection is
//! cut, does not stop a change half-way, and the call keeps its place until its work is done: the bound
//! is one on what the node has in hand, not on who still waits for it.
//!
//! Health is asked without a place and until the end: it is how others learn that the node stops.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::HeaderValue;
use axum::middleware::Next;
use axum::response::Response;
use tokio::sync::{Semaphore, watch};
use tonic::{Code, Status};

use super::deadline::Deadline;

/// Calls that a node has in hand at most. Half of the threads that tokio lends to what may block.
pub const CALLS_MAX: usize = 256;

const HEALTH: &str = "/grpc.health.v1.Health/";
/// The header of an answer that is nothing but a status.
const STATUS: &str = "grpc-status";

#[derive(Clone)]
pub struct Admission {
    stopping: watch::Receiver<bool>,
    places: Arc<Semaphore>,
}

impl Admission {
    /// From when `stopping` is true no call is taken any more.
    pub fn new(stopping: watch::Receiver<bool>) -> Admission {
        Admission { stopping, places: Arc::new(Semaphore::new(CALLS_MAX)) }
    }

    /// Returns when no call is in hand any more.
    pub async fn drained(&self) {
        // An error says that the semaphore is closed, which nobody does.
        let _ = self.places.acquire_many(CALLS_MAX as u32).await;
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
    let Ok(place) = Arc::clone(&admission.places).try_acquire_owned() else {
        let reason = format!("this node has {CALLS_MAX} calls in hand and takes no more; try again later");
        return refuse(Status::resource_exhausted(reason));
    };
    let deadline = Deadline::of_call(path, request.headers());
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
