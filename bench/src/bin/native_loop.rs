//! The native rdkafka loop as a program of its own, so that its CPU time can be told from everything
//! else's. Run by `bench-map`; useful by hand to profile it.

use anyhow::{Result, bail};
use tidemill_bench::native::{self, Guarantee, Job};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [bootstrap, input, output, group, partitions, records, guarantee] = arguments.as_slice() else {
        bail!(
            "usage: native-loop BOOTSTRAP INPUT OUTPUT GROUP PARTITIONS RECORDS exactly_once|at_least_once"
        );
    };
    let guarantee = match guarantee.as_str() {
        "exactly_once" => Guarantee::ExactlyOnce,
        "at_least_once" => Guarantee::AtLeastOnce,
        other => bail!("unknown guarantee {other:?}"),
    };
    native::run(&Job {
        bootstrap: bootstrap.clone(),
        input: input.clone(),
        output: output.clone(),
        group: group.clone(),
        partitions: partitions.parse()?,
        records: records.parse()?,
        guarantee,
    })
}
