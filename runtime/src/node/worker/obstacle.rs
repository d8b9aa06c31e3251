//! What keeps records from coming and only a person can mend: said, and no reason to give up what there is.

use std::time::Duration;

use super::{Consumer, Worker};

/// It is looked for this often.
const LOOK: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(super) struct Obstacle {
    looked: Duration,
    met: Option<String>,
}

impl<C: Consumer> Worker<C> {
    pub(super) fn look_for_obstacles(&mut self) {
        let now = self.clock.monotonic();
        if now.saturating_sub(self.obstacle.looked) < LOOK {
            return;
        }
        self.obstacle.looked = now;
        let met = self.consumer.as_ref().and_then(C::obstacle).map(|reason| {
            format!(
                "records cannot be fetched: {reason}; it is tried again, with passwords and certificates as they were when the node \
                 started"
            )
        });
        let before = std::mem::replace(&mut self.obstacle.met, met);
        let (deployment, worker) = (&self.deployment, self.index);
        match &self.obstacle.met {
            Some(reason) if before.as_ref() != Some(reason) => {
                tracing::error!(%deployment, worker, reason, "records do not come");
            }
            None if before.is_some() => tracing::info!(%deployment, worker, "records come again"),
            None => return,
            Some(_) => {}
        }
        self.board.obstacle(worker, self.obstacle.met.as_deref());
    }
}
