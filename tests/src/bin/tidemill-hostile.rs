//! Hostile guests and clients, and what many deployments leave behind: `make hostile`, `make soak`.
//!
//! The exit code is not zero if anything was not contained, or anything has grown.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Parser, Subcommand};
use tidemill_tests::cluster::Cluster;
use tidemill_tests::hostile::bare;
use tidemill_tests::hostile::case::{self, Case};
use tidemill_tests::hostile::churn::{self, Handler, Small};
use tidemill_tests::hostile::stage::{FLOOR_MS, Outcome, Spans, Stage};
use tidemill_tests::programs::record;

#[derive(Parser)]
struct Arguments {
    /// Where the node's Kafka is
    #[arg(long, global = true, value_parser = ["embedded", "apache"], default_value = "embedded")]
    broker: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Every hostile guest, module and client, beside an innocent deployment
    Cases {
        /// One of each kind, measured for a shorter time: for a gate
        #[arg(long)]
        short: bool,
        /// Those whose number or name has these words
        #[arg(long)]
        only: Option<String>,
        /// Modules with something changed in them
        #[arg(long, default_value_t = 10_000)]
        mutants: usize,
        #[arg(long)]
        seed: Option<u64>,
    },
    /// Deploys and deletes in a row, then small deployments at once
    Churn {
        /// None in a row if it is 0
        #[arg(long, default_value_t = 1_000)]
        count: usize,
        /// So many at once, on a node of their own for each number
        #[arg(long, value_delimiter = ',', default_values_t = [200])]
        small: Vec<usize>,
        /// Which of them run
        #[arg(long, value_enum, default_value_t = Handler::Count)]
        handler: Handler,
    },
    /// What `churn` compares with: so many bare clients of librdkafka
    #[command(hide = true)]
    Clients {
        #[arg(long)]
        bootstrap: String,
        #[arg(long)]
        topic: String,
        #[arg(long)]
        count: usize,
    },
}

fn main() -> ExitCode {
    let Arguments { broker, command } = Arguments::parse();
    let cluster = || if broker == "apache" { Cluster::apache() } else { Cluster::embedded() };
    let outcome = match command {
        Command::Cases { short, only, mutants, seed } => {
            let seed = seed.unwrap_or_else(|| fastrand::u64(..));
            let cases = case::all(mutants).into_iter().filter(|case| {
                let named = |words: &String| {
                    case.fault.eq_ignore_ascii_case(words) || case.name.contains(words.as_str())
                };
                (!short || case.short) && only.as_ref().is_none_or(named)
            });
            let span = Duration::from_secs(if short { 2 } else { 5 });
            run_cases(cluster(), cases.collect(), Spans { undisturbed: span, disturbed: span }, seed)
        }
        Command::Churn { count, small, handler } => {
            let is_kept = broker == "apache" && handler == Handler::Pass;
            run_churn(cluster, count, &small, handler, is_kept)
        }
        Command::Clients { bootstrap, topic, count } => bare::run(&bootstrap, &topic, count).map(|()| true),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// True if every case is contained.
fn run_cases(cluster: Cluster, cases: Vec<Case>, spans: Spans, seed: u64) -> Result<bool> {
    println!("seed {seed}");
    let directory = tempfile::tempdir()?;
    let mut stage = Stage::start(cluster, directory.path(), spans, seed)?;
    println!(
        "the neighbour's p99 may become twice what it was, and {FLOOR_MS:.0} ms whatever it was: less is as good as none"
    );
    println!(
        "{:<5} {:<32} {:>8} {:>8} {:>12} {:>19}  REASON",
        "", "CASE", "TOLD", "MEMORY", "NEIGHBOUR", "ITS P99"
    );
    let mut contained = 0;
    for case in &cases {
        let outcome = stage.run(case)?;
        show(case, &outcome);
        contained += usize::from(outcome.faults.is_empty());
    }
    let (went_in, came_out) = stage.finish()?;
    let whole = went_in == came_out;
    if !whole {
        println!("the neighbour was given {went_in} records, and {came_out} came out");
    }
    println!("hostile: {contained} of {} contained", cases.len());
    Ok(whole && contained == cases.len())
}

fn show(case: &Case, outcome: &Outcome) {
    let reason: String = outcome.reason.lines().next().unwrap_or_default().chars().take(100).collect();
    println!(
        "{:<5} {:<32} {:>6.1} s {:>+4} MiB {:>10.0}/s {:>6.0} -> {:>6.0} ms  {reason}",
        case.fault,
        case.name,
        outcome.took.as_secs_f64(),
        outcome.grown_mib,
        outcome.during.rate,
        outcome.before.p99_ms,
        outcome.during.p99_ms,
    );
    for fault in &outcome.faults {
        println!("      NOT CONTAINED: {fault}");
    }
    if outcome.pairs > 1 {
        println!("      the neighbour's numbers are the middle ones of {} pairs", outcome.pairs);
    }
    if !outcome.faults.is_empty() {
        println!("      others used {:.0} % of the machine meanwhile", 100.0 * outcome.foreign);
    }
}

/// True if nothing has grown, all of many deployments worked, and what each cost is within its bar, if it is kept.
/// `is_kept`: it goes to the results.
fn run_churn(
    cluster: impl Fn() -> Cluster,
    count: usize,
    small: &[usize],
    handler: Handler,
    is_kept: bool,
) -> Result<bool> {
    let directory = tempfile::tempdir()?;
    let (mut grown, mut is_met) = (Vec::new(), true);
    if count > 0 {
        let (first, last) = churn::in_a_row(cluster(), &directory.path().join("row"), count)?;
        println!("{count} deploys and deletes: at first {first:.1?}, at last {last:.1?}");
        grown = churn::grown(&first, &last);
    }
    for line in &grown {
        println!("  grown: {line}");
    }
    for &small in small {
        let directory = directory.path().join(format!("many-{small}"));
        let found = churn::at_once(cluster(), &directory, small, handler)?;
        show_small(small, handler, &found);
        if is_kept && KEPT.contains(&small) {
            let measured_by = format!("make soak COUNT=0 SMALL={small} HANDLER=pass BROKER=apache");
            let [idle, busy] = found.millicores;
            let beside = [
                ("threads", found.threads),
                ("millicores_idle", idle),
                ("millicores_busy", busy),
                ("rss_kib", found.rss_kib),
                ("first_mib", found.first_mib),
            ];
            is_met &= record(&format!("idle-{small}"), &measured_by, &[found.own_kib()], &beside);
        }
    }
    let small: Vec<String> = small.iter().map(usize::to_string).collect();
    println!(
        "soak: {count} deploys and deletes, {} things grown, {} small deployments at once",
        grown.len(),
        small.join(", ")
    );
    Ok(grown.is_empty() && is_met)
}

/// So many are workloads of the benchmarks' table.
const KEPT: [usize; 2] = [100, 500];
/// What a small deployment without state may cost by itself.
const OWN_KIB_MAX: f64 = 256.0;

fn show_small(count: usize, handler: Handler, small: &Small) {
    let Small { node, cores: [alone, idle, busy], millicores: [each_idle, each_busy], .. } = small;
    println!(
        "{count} small deployments at once: {} MiB, {} threads; {alone:.2} cores with another alone, {idle:.2} \
         with all idle, {busy:.2} with a record a second to each; the other has added {:.1} MiB",
        node.rss_kib / 1_024,
        node.threads,
        small.first_mib
    );
    println!(
        "  each {:.0} KiB, {:.1} threads, {:.1} descriptors, {:.1} mappings, {each_idle:.2} thousandths of a core idle, \
         {each_busy:.2} busy",
        small.rss_kib, small.threads, small.descriptors, small.mappings
    );
    // Of few, what they take from the allocator, which gives in larger pieces, says little of each.
    let is_judged = handler == Handler::Pass && KEPT.contains(&count);
    let bar = match small.own_kib() <= OWN_KIB_MAX {
        _ if !is_judged => String::new(),
        true => format!(" (at most {OWN_KIB_MAX})"),
        false => format!(" (at most {OWN_KIB_MAX}: MISSED)"),
    };
    println!(
        "  of each: {:.0} KiB linear memory, {:.0} KiB and {:.1} threads for librdkafka alone, {:.0} KiB the rest{bar}",
        small.linear_kib,
        small.clients.rss_kib,
        small.clients.threads,
        small.own_kib(),
    );
}
