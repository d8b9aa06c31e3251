//! Topics over gRPC. Whichever node is asked asks Kafka, so nothing is passed on.

use tidemill_proto::v1 as proto;
use tonic::{Request, Response, Status};

use super::grpc::{Services, change, pending};
use crate::node::Handle;

#[tonic::async_trait]
impl proto::topics_server::Topics for Services {
    async fn apply(
        &self,
        request: Request<proto::ApplyTopicsRequest>,
    ) -> Result<Response<proto::ApplyTopicsResponse>, Status> {
        let pending = pending(&request);
        let (node, request) = self.admitted(request);
        let apply = move |node: &Handle| node.apply_topics(&request);
        self.counted(change(&node, pending, |_, _| 0, apply)).await
    }
}
