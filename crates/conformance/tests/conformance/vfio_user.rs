//! The models behind vfio-user have no failure, and the engine is made to write there too.

use std::sync::Arc;

use whimbrel_conformance::models::{AccelProbe, AccelWriter, SerialProbe};
use whimbrel_conformance::{Config, DmaWriter, RegisterProbe, Report, Subjects, Verdict, run_suite};
use whimbrel_models::Model;
use whimbrel_user::Device;
use whimbrel_vfio_user::{Backend, Client, ClientOptions, Server};

/// Runs the suite on a model behind a server.
fn run(model: &str, registers: Arc<dyn RegisterProbe>, writer: Option<Arc<dyn DmaWriter>>) -> Report {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("device");
    let device = model.parse::<Model>().expect("a model").open("model").expect("memory for a device");
    let server = Server::bind(&socket, Backend::new(device)).expect("a socket");
    let stopper = server.stopper();
    let serving = std::thread::spawn(move || server.run());
    let mut config = Config::default();
    config.registers = Some(registers);
    config.writer = writer;
    let subjects = Subjects::new("vfio-user", move || {
        let client = Client::connect(&socket, &ClientOptions::default())?;
        Ok(Box::new(client) as Box<dyn Device>)
    });
    let mut report = Report::default();
    run_suite(&subjects, &config, &mut [], &mut |event| report.add(event));
    stopper.stop();
    serving.join().expect("the server does not panic").expect("a server without an error");
    report
}

#[test]
fn a_model_behind_vfio_user_is_sound() {
    let report = run("serial?ports=2", Arc::new(SerialProbe::default()), None);
    assert!(report.passed(), "{report}");
}

#[test]
fn an_engine_behind_vfio_user_is_made_to_write() {
    let report =
        run("accel?state=64KiB", Arc::new(AccelProbe::default()), Some(Arc::new(AccelWriter::new())));
    assert!(report.passed(), "{report}");
    let writes = report.results().iter().filter(|result| result.id.starts_with("v2/dma-writes/"));
    for result in writes {
        assert_eq!(result.verdict, Verdict::Pass, "{result:#?}");
    }
}
