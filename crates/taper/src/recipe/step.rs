//! One `[[pass]]`: its name, its selection, and what is left for the pass itself.

use serde::de::DeserializeOwned;
use taper_core::Select;
use toml::{
    Spanned,
    de::{DeTable, DeValue, ValueDeserializer},
};

use super::{Place, RecipeError, arms::PASSES, keys, spelling::nearest};

/// A pass as it is written down.
pub(super) struct Step<'a> {
    text: &'a str,
    number: usize,
    name: String,
    place: Place,
    start: usize,
    table: DeTable<'a>,
}

impl<'a> Step<'a> {
    /// The `number`th pass, whose table begins at byte `start`.
    pub(super) fn read(
        text: &'a str,
        number: usize,
        start: usize,
        mut table: DeTable<'a>,
    ) -> Result<Self, RecipeError> {
        let unnamed = Place::at(text, start).of_pass(number, "");
        let Some(name) = table.remove("name") else {
            return Err(RecipeError::NoName { place: unnamed, known: keys::list(&PASSES) });
        };
        let line = Place::at(text, name.span().start);
        let Some(name) = name.get_ref().as_str().map(ToOwned::to_owned) else {
            return Err(RecipeError::BadValue {
                place: line.of_pass(number, ""),
                key: "name".to_owned(),
                found: shown(text, &name),
                expected: format!("one of {}", keys::list(&PASSES)),
            });
        };
        Ok(Self { text, number, place: line.of_pass(number, &name), name, start, table })
    }

    /// The table of the bit budget, which needs no name.
    pub(super) fn budget(text: &'a str, start: usize, table: DeTable<'a>) -> Self {
        let name = "budget".to_owned();
        Self { text, number: 0, place: Place::at(text, start), name, start, table }
    }

    /// Where the pass's name stands.
    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    /// The pass's name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The settings of a pass that is for a selection of weights, and that selection.
    pub(super) fn selecting<T: DeserializeOwned>(mut self) -> Result<(T, Select), RecipeError> {
        let select = self.patterns("select")?;
        let exclude = self.patterns("exclude")?;
        let bad = |place: &Place| {
            let place = place.clone();
            move |source| RecipeError::BadPattern { place, source: Box::new(source) }
        };
        let mut selection = match &select {
            Some((place, patterns)) => {
                Select::any(patterns.iter().map(String::as_str)).map_err(bad(place))?
            }
            None => Select::matrices(),
        };
        if let Some((place, patterns)) = &exclude {
            for pattern in patterns {
                selection = selection.except(pattern).map_err(bad(place))?;
            }
        }
        Ok((self.settings(&["name", "select", "exclude"])?, selection))
    }

    /// The settings of a format to choose from, which has no selection of its own.
    pub(super) fn offered<T: DeserializeOwned>(self) -> Result<T, RecipeError> {
        self.settings(&["name"])
    }

    /// The settings of a pass that cuts along couplings, and how to report that it refuses them.
    pub(super) fn cutting<T: DeserializeOwned>(
        self,
    ) -> Result<(T, impl FnOnce(taper_core::Error) -> RecipeError), RecipeError> {
        for key in ["select", "exclude"] {
            if let Some((found, _)) = self.table.get_key_value(key) {
                let place = self.line(found.span().start);
                return Err(RecipeError::NotSelectable { place, key: key.to_owned() });
            }
        }
        let place = self.place.clone();
        let refused = move |error: taper_core::Error| RecipeError::BadSettings {
            place,
            message: error.to_string(),
            known: keys::list(keys::of::<T>()),
        };
        Ok((self.settings(&["name"])?, refused))
    }

    /// What is left of the table, as the pass's own settings.
    fn settings<T: DeserializeOwned>(self, shared: &[&str]) -> Result<T, RecipeError> {
        let own = keys::of::<T>();
        let all: Vec<&str> = shared.iter().chain(own).copied().collect();
        for key in self.table.keys() {
            if !own.contains(&key.get_ref().as_ref()) {
                return Err(RecipeError::UnknownKey {
                    place: self.line(key.span().start),
                    key: key.get_ref().to_string(),
                    owner: format!("`{}`", self.name),
                    nearest: nearest(key.get_ref(), &all),
                    known: keys::list(&all),
                });
            }
        }
        let (text, number, name, place) = (self.text, self.number, self.name, self.place);
        let table = Spanned::new(self.start..self.start, DeValue::Table(self.table));
        T::deserialize(ValueDeserializer::from(table)).map_err(|e| RecipeError::BadSettings {
            // The table's own span means "something in it is missing": the name's line says it better.
            place: match e.span().filter(|s| s.start != self.start) {
                Some(span) => Place::at(text, span.start).of_pass(number, &name),
                None => place,
            },
            message: message(text, &e),
            known: keys::list(own),
        })
    }

    /// A pattern or a list of patterns, taken out of the table.
    fn patterns(&mut self, key: &str) -> Result<Option<(Place, Vec<String>)>, RecipeError> {
        let Some(value) = self.table.remove(key) else { return Ok(None) };
        let place = self.line(value.span().start);
        let text = |v: &Spanned<DeValue<'_>>| v.get_ref().as_str().map(ToOwned::to_owned);
        let patterns = match value.get_ref() {
            DeValue::Array(items) => items.iter().map(text).collect(),
            _ => text(&value).map(|one| vec![one]),
        };
        match patterns {
            Some(patterns) if !patterns.is_empty() => Ok(Some((place, patterns))),
            _ => Err(RecipeError::BadValue {
                place,
                key: key.to_owned(),
                found: shown(self.text, &value),
                expected: "a pattern such as \"model.layers.*\", or a list of them".to_owned(),
            }),
        }
    }

    fn line(&self, offset: usize) -> Place {
        Place::at(self.text, offset).of_pass(self.number, &self.name)
    }
}

/// A value as the recipe spells it, or its type where that is long.
pub(super) fn shown(text: &str, value: &Spanned<DeValue<'_>>) -> String {
    match text.get(value.span()) {
        Some(source) if source.len() <= 40 && !source.is_empty() => format!("`{source}`"),
        _ => format!("of type {}", value.get_ref().type_str()),
    }
}

/// What serde said, with the key in question in front where it names none.
fn message(text: &str, error: &toml::de::Error) -> String {
    let message = error.message().trim_end();
    let line = error.span().and_then(|span| {
        let start = text.get(..span.start)?.rfind('\n').map_or(0, |n| n + 1);
        text.get(start..)?.lines().next()
    });
    match line.and_then(|l| l.split_once('=')) {
        Some((key, value)) if !message.contains('`') || message.starts_with("invalid") => {
            format!("`{}` is {}: {message}", key.trim(), value.trim())
        }
        _ => message.to_owned(),
    }
}
