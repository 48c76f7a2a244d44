//! The images of disks that are given without one: files in the demo's private folder, removed with it.

use std::fs::File;

use whimbrel_models::Model;

use super::processes::Processes;
use crate::failure::Failure;
use crate::model_text::ModelText;

/// Size of an image whose model does not say one, in bytes. The file has holes until they are written.
const BYTES: u64 = 64 << 20;

/// Returns device `number`'s model with an image: the one that it has, or one that is created at the first call.
pub(super) fn complete(
    model: &ModelText,
    number: usize,
    processes: &mut Processes,
) -> Result<ModelText, Failure> {
    if !model.lacks_image() {
        return Ok(model.clone());
    }
    let path = processes.folder()?.join(format!("disk-{}.img", number + 1));
    let model = model.clone().with_image(&path);
    let size = match model.model().map_err(|error| Failure::from_error(&error))? {
        Model::Nvme(config) => config.size.unwrap_or(BYTES),
        _ => BYTES,
    };
    File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .and_then(|file| file.set_len(size))
        .map_err(|error| Failure::from_io(format!("cannot create the image {}", path.display()), &error))?;
    Ok(model)
}
