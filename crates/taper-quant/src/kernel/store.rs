//! The two forms of a packed weight, of which one is held: rows as a file has them, or tiles.
//!
//! A weight begins as rows. The first product repacks it and lets the rows go; saving it makes them again for the moment.
//! Nobody can tell which of the two is there, but by memory and time.
//!
//! Neighbours: [`super::tiles`] is the second form; `PackedInt` and `PackedNf4` say what their rows are.

use std::sync::{Arc, PoisonError, RwLock};

use super::tiles::Tiles;

/// See the module. `R` is the row form.
#[derive(Debug)]
pub(crate) struct Store<R>(RwLock<Form<R>>);

/// What is held.
#[derive(Debug)]
pub(crate) enum Form<R> {
    /// As a file has it.
    Rows(Arc<R>),
    /// Repacked, and what of the row form the tiles do not say.
    Tiles(Arc<Tiles>, Arc<R>),
}

impl<R> Clone for Form<R> {
    fn clone(&self) -> Self {
        match self {
            Self::Rows(rows) => Self::Rows(Arc::clone(rows)),
            Self::Tiles(tiles, kept) => Self::Tiles(Arc::clone(tiles), Arc::clone(kept)),
        }
    }
}

impl<R> Store<R> {
    /// A weight as a file has it.
    pub(crate) fn new(rows: R) -> Self {
        Self(RwLock::new(Form::Rows(Arc::new(rows))))
    }

    /// The form of the moment.
    pub(crate) fn form(&self) -> Form<R> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The tiles, made where they are not there yet.
    ///
    /// `repack` gives them and what is to be kept of the rows. It runs without a lock, because it may run tasks of a
    /// thread pool; of two threads that repack at once, one lets its result go.
    pub(crate) fn tiles(&self, repack: impl FnOnce(&R) -> (Tiles, R)) -> Arc<Tiles> {
        let rows = match self.form() {
            Form::Tiles(tiles, _) => return tiles,
            Form::Rows(rows) => rows,
        };
        let (tiles, kept) = repack(&rows);
        let mut form = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if let Form::Tiles(tiles, _) = &*form {
            return Arc::clone(tiles);
        }
        let tiles = Arc::new(tiles);
        *form = Form::Tiles(Arc::clone(&tiles), Arc::new(kept));
        tiles
    }
}
