//! Topics over gRPC. Whichever node is asked asks Kafka, so nothing is passed on.

use tidemill_proto::v1 as proto;
use tonic::{Request, Response, Status};

use super::grpc::{Services, pending};

#[tonic::async_trait]
impl proto::topics_server::Topics for Services {
    async fn apply(
        &self,
        request: Request<proto::ApplyTopicsRequest>,
    ) -> Result<Response<proto::ApplyTopicsResponse>, Status> {
        let pending = pending(&request);
        let (node, request) = self.admitted(request);
        self.change(node, pending, move |node| node.apply_topics(&request)).await
    }
}
