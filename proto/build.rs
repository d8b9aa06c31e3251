//! Compiles the wire contracts; no `protoc` is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "tidemill/v1/control.proto",
        "tidemill/v1/inbox.proto",
        "tidemill/v1/letters.proto",
        "tidemill/v1/log.proto",
        "tidemill/v1/logs.proto",
        "tidemill/v1/outbox.proto",
        "tidemill/v1/parked.proto",
        "tidemill/v1/state.proto",
        "tidemill/v1/topics.proto",
        "google/rpc/error_details.proto",
    ];
    for file in files {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(files, ["."])?;
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    // For server reflection.
    std::fs::write(out.join("tidemill.bin"), prost_encode(&descriptors))?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}

fn prost_encode(descriptors: &impl prost::Message) -> Vec<u8> {
    descriptors.encode_to_vec()
}
