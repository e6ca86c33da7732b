//! `taper recipes`: the recipes that come with the command.

use serde::Serialize;
use taper::recipe::shipped;

use crate::{
    failure::Failure,
    table::{Side, Table},
    terminal::Terminal,
};

#[derive(Serialize)]
struct Shown {
    recipes: Vec<Line>,
}

#[derive(Serialize)]
struct Line {
    name: &'static str,
    what: &'static str,
}

pub(crate) fn run(terminal: Terminal) -> Result<(), Failure> {
    let recipes = shipped::ALL.iter().map(|r| Line { name: r.name, what: r.what() }).collect();
    terminal.show(&Shown { recipes }, || {
        let mut table = Table::new([("recipe", Side::Left), ("what it does", Side::Left)]);
        for recipe in shipped::ALL {
            table.row([recipe.name.to_owned(), recipe.what().to_owned()]);
        }
        format!("{table}\nuse one with `taper compress DIR -o OUT --recipe NAME`")
    })
}
