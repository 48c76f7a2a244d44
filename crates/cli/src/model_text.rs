//! A model by its text, whose image may be given apart: by `serve --image`, or made by the demo.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use whimbrel_models::{Model, ModelError};

use crate::target::{model_forms, model_from};
use crate::usage::WrongValue;

/// The text of a model, complete or without its image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ModelText {
    text: String,
    image: Option<PathBuf>,
}

impl ModelText {
    /// Parses the part after `model:`. An nvme may lack its image, and nothing else may be wrong.
    pub(crate) fn parse(text: &str) -> Result<ModelText, WrongValue> {
        match text.parse::<Model>() {
            Err(ModelError::Missing { .. }) => Model::parse_with_image(text, "image").map_err(model_forms)?,
            _ => model_from(text)?,
        };
        Ok(ModelText { text: text.to_owned(), image: None })
    }

    /// Gives the model an image apart from its settings.
    pub(crate) fn with_image(self, image: impl Into<PathBuf>) -> ModelText {
        ModelText { image: Some(image.into()), ..self }
    }

    /// Returns whether the model needs an image and has none.
    pub(crate) fn lacks_image(&self) -> bool {
        matches!(self.model(), Err(ModelError::Missing { .. }))
    }

    /// Returns the image that was given apart.
    pub(crate) fn image(&self) -> Option<&PathBuf> {
        self.image.as_ref()
    }

    /// Returns the model. Fails if it lacks its image, or if it has one already or takes none and was given one.
    pub(crate) fn model(&self) -> Result<Model, ModelError> {
        match &self.image {
            Some(image) => Model::parse_with_image(&self.text, image),
            None => self.text.parse(),
        }
    }

    /// Returns the model's name, without settings.
    pub(crate) fn name(&self) -> &str {
        self.text.split('?').next().unwrap_or_default()
    }
}

/// The text as it was given, without an image that was given apart.
impl fmt::Display for ModelText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_may_lack_its_image_and_nothing_else() {
        for text in ["nvme", "nvme?queues=2&readonly"] {
            let model = ModelText::parse(text).unwrap();
            assert!(model.lacks_image(), "{text}");
            let model = model.with_image("a&b");
            assert!(!model.lacks_image() && model.model().is_ok(), "{text}");
            assert_eq!((model.to_string().as_str(), model.name()), (text, "nvme"));
        }
        for text in ["nvme?image=d", "accel?state=1MiB", "serial"] {
            let model = ModelText::parse(text).unwrap();
            assert!(!model.lacks_image(), "{text}");
            assert!(model.with_image("d").model().is_err(), "{text}");
        }
        for text in ["nvme?queues=0", "accel?state=1", "disk"] {
            assert!(ModelText::parse(text).is_err(), "{text}");
        }
    }
}
