//! A broker with short intervals on the directory that is its argument, for tests that kill it. Says
//! where it listens, and ends when its standard input does, so that a test that dies leaves nothing
//! behind. People use `tidemill broker`.

use std::io::{Error, Read};
use std::path::PathBuf;

use tidemill_broker::{Broker, Config};

fn main() -> Result<(), Error> {
    let directory = std::env::args_os().nth(1).ok_or_else(|| Error::other("name a directory"))?;
    let config = Config { data_dir: Some(PathBuf::from(directory)), ..Config::hasty() };
    let broker = Broker::start(config).map_err(Error::other)?;
    println!("{}", broker.address());
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}
