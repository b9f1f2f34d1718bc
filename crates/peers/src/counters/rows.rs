//! The rows by their places, which do not change while a row is there.

use super::row::Row;

/// Where a row is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place(u32);

impl Place {
    pub(super) fn index(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

/// Rows. Places of removed ones are used again.
#[derive(Debug, Default)]
pub(super) struct Rows {
    rows: Vec<Option<Row>>,
    free: Vec<Place>,
}

impl Rows {
    pub(super) const fn len(&self) -> usize {
        self.rows.len() - self.free.len()
    }

    /// The number of places, some of which are free.
    pub(super) const fn places(&self) -> usize {
        self.rows.len()
    }

    /// The place with this number, if there is a row.
    pub(super) fn place(&self, number: usize) -> Option<Place> {
        self.rows.get(number)?.as_ref()?;
        u32::try_from(number).ok().map(Place)
    }

    pub(super) fn get(&self, place: Place) -> Option<&Row> {
        self.rows.get(place.index())?.as_ref()
    }

    pub(super) fn get_mut(&mut self, place: Place) -> Option<&mut Row> {
        self.rows.get_mut(place.index())?.as_mut()
    }

    /// `None` if there are 2^32 rows.
    pub(super) fn insert(&mut self, row: Row) -> Option<Place> {
        if let Some(place) = self.free.pop() {
            *self.rows.get_mut(place.index())? = Some(row);
            return Some(place);
        }
        let place = Place(u32::try_from(self.rows.len()).ok()?);
        self.rows.push(Some(row));
        Some(place)
    }

    pub(super) fn remove(&mut self, place: Place) -> Option<Row> {
        let removed = self.rows.get_mut(place.index())?.take()?;
        self.free.push(place);
        Some(removed)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Place, &Row)> {
        (0..).map(Place).zip(&self.rows).filter_map(|(place, row)| Some((place, row.as_ref()?)))
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (Place, &mut Row)> {
        (0..).map(Place).zip(&mut self.rows).filter_map(|(place, row)| Some((place, row.as_mut()?)))
    }
}
