//! The identity of a served device, with and without the extension that carries the driver's description.

use std::os::unix::net::UnixStream;

use whimbrel_models::Model;
use whimbrel_user::{Local, Migratable, region};
use whimbrel_vfio_user::{Backend, BackendOptions, Client, ClientOptions, MigrationExtensions};

const MODELS: [&str; 5] =
    ["serial?ports=2", "accel?state=4KiB", "accel?state=8KiB&protocol=v1", "legacy?state=4KiB", "serial"];

fn served(model: &str, extensions: Option<MigrationExtensions>) -> Client {
    let device = model.parse::<Model>().unwrap().open("device").unwrap();
    let (server, stream) = UnixStream::pair().unwrap();
    std::thread::spawn(move || Backend::with(device, BackendOptions::default()).serve(server));
    let capabilities = Client::capabilities().migration_extensions(extensions);
    Client::new("device", stream, &ClientOptions::default().capabilities(capabilities)).unwrap()
}

#[test]
fn a_served_device_has_the_identity_of_a_local_one() {
    for model in MODELS {
        let mut local = Local::new(model.parse::<Model>().unwrap().open("device").unwrap());
        let mut remote = served(model, Some(MigrationExtensions::ALL));
        let identity = local.identity().unwrap();
        assert_eq!(remote.identity().unwrap(), identity, "{model}");
        let compatibility = identity.compatibility.clone().expect(model);
        assert!(model.starts_with(&compatibility.model) && !compatibility.data.is_empty(), "{model}");
        assert!(identity.pci.is_some(), "{model}");

        let mut adapted = region::adapt(Box::new(local)).unwrap();
        let adapted = adapted.identity().unwrap();
        assert_eq!(adapted.compatibility, Some(compatibility), "{model}");
        assert_eq!((adapted.num_regions, adapted.pci), (9, identity.pci), "{model}: no migration region");
    }
}

#[test]
fn devices_whose_state_does_not_load_differ() {
    let told = |model| served(model, Some(MigrationExtensions::ALL)).identity().unwrap().compatibility;
    assert_ne!(told("serial"), told("serial?ports=2"));
    assert_ne!(told("accel?state=4KiB"), told("accel?state=8KiB"));
    assert_ne!(told("accel?state=4KiB"), told("legacy?state=4KiB"));
    assert_eq!(told("accel?state=4KiB&rate=1KiB&features=p2p"), told("accel?state=4KiB&protocol=v1"));
}

#[test]
fn without_the_extension_the_driver_says_nothing() {
    for extensions in [None, Some(MigrationExtensions::ALL.compatibility(false))] {
        let mut device = served("accel?state=4KiB", extensions);
        assert_eq!(device.agreed().migration_compatibility, None);
        let identity = device.identity().unwrap();
        assert!(identity.compatibility.is_none() && identity.pci.is_some());
    }
}
