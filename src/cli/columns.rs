//! Tables for a terminal.

/// A table whose columns are as wide as their widest cell.
#[derive(Clone, Debug)]
pub struct Columns {
    widths: Vec<usize>,
    heading: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Columns {
    /// Creates a table without rows.
    pub fn new(heading: &[&str]) -> Self {
        let heading: Vec<String> = heading.iter().map(ToString::to_string).collect();
        Self { widths: heading.iter().map(|cell| cell.chars().count()).collect(), heading, rows: Vec::new() }
    }

    /// Adds a row. Missing cells are empty; surplus cells are dropped.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let cells: Vec<String> = cells.into_iter().take(self.widths.len()).collect();
        for (width, cell) in self.widths.iter_mut().zip(&cells) {
            *width = (*width).max(cell.chars().count());
        }
        self.rows.push(cells);
    }

    /// The heading as a line.
    pub fn heading(&self) -> String {
        self.line(&self.heading)
    }

    /// The rows as lines.
    pub fn lines(&self) -> impl Iterator<Item = String> + '_ {
        self.rows.iter().map(|row| self.line(row))
    }

    fn line(&self, cells: &[String]) -> String {
        let mut line = String::new();
        for (cell, width) in cells.iter().zip(&self.widths) {
            line.push_str(&format!("{cell:width$}  "));
        }
        line.truncate(line.trim_end().len());
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Columns::new(&["TARGET", "BY"]);
        table.row(["192.0.2.1".to_owned(), "äöü".to_owned()]);
        table.row(["::1".to_owned()]);
        assert_eq!(table.heading(), "TARGET     BY");
        assert_eq!(table.lines().collect::<Vec<_>>(), ["192.0.2.1  äöü", "::1"]);
    }
}
