//! Topics over gRPC. Whichever node is asked asks Kafka, so nothing is passed on.

use tidemill_proto::v1 as proto;
use tonic::{Request, Response, Status};

use super::grpc::Services;

#[tonic::async_trait]
impl proto::topics_server::Topics for Services {
    async fn apply(
        &self,
        request: Request<proto::ApplyTopicsRequest>,
    ) -> Result<Response<proto::ApplyTopicsResponse>, Status> {
        let (node, request) = self.admitted(request);
        self.ask(node, move |node| node.apply_topics(&request)).await
    }
}
