//! A dashboard, and the JSON that Grafana imports: no more of it than Grafana needs, in an order that stays.

use serde_json::{Value, json};

/// The model of dashboards that this is: of Grafana 10, and taken by later ones.
const SCHEMA: u32 = 39;
/// Of the 24 columns of a dashboard.
const PANEL_WIDTH: usize = 8;
const PANEL_HEIGHT: usize = 8;

pub struct Dashboard {
    /// The name of its file, and of its page in Grafana.
    pub uid: &'static str,
    pub title: &'static str,
    /// The metric whose chains can be chosen, where it has panels by chain.
    pub chains_of: Option<&'static str>,
    pub rows: Vec<Row>,
}

pub struct Row {
    pub title: &'static str,
    pub panels: Vec<Panel>,
}

pub struct Panel {
    pub title: &'static str,
    pub description: &'static str,
    /// As Grafana calls it.
    pub unit: &'static str,
    pub queries: Vec<Query>,
}

pub struct Query {
    pub expr: &'static str,
    /// The name of a line, with its labels in braces.
    pub legend: &'static str,
}

impl Query {
    /// `letter` tells the queries of a panel apart.
    fn json(&self, letter: char) -> Value {
        json!({
            "datasource": source(),
            "expr": self.expr,
            "legendFormat": self.legend,
            "refId": letter.to_string(),
        })
    }
}

/// A panel with one query.
pub fn panel(
    title: &'static str,
    unit: &'static str,
    description: &'static str,
    expr: &'static str,
    legend: &'static str,
) -> Panel {
    Panel { title, description, unit, queries: vec![Query { expr, legend }] }
}

impl Panel {
    /// The same with one more query.
    pub fn and(mut self, expr: &'static str, legend: &'static str) -> Self {
        self.queries.push(Query { expr, legend });
        self
    }

    fn json(&self, id: usize, (x, y): (usize, usize)) -> Value {
        json!({
            "id": id,
            "type": "timeseries",
            "title": self.title,
            "description": self.description,
            "datasource": source(),
            "gridPos": { "h": PANEL_HEIGHT, "w": PANEL_WIDTH, "x": x, "y": y },
            "fieldConfig": { "defaults": { "unit": self.unit, "min": 0, "custom": { "fillOpacity": 10 } }, "overrides": [] },
            "options": {
                "legend": { "displayMode": "list", "placement": "bottom", "showLegend": true },
                "tooltip": { "mode": "multi", "sort": "desc" },
            },
            "targets": self.queries.iter().zip('A'..='Z').map(|(query, letter)| query.json(letter)).collect::<Vec<_>>(),
        })
    }
}

fn source() -> Value {
    json!({ "type": "prometheus", "uid": "${source}" })
}

impl Dashboard {
    /// Each query with the panel that shows it.
    pub fn queries(&self) -> Vec<(String, String)> {
        let panels = self.rows.iter().flat_map(|row| &row.panels);
        let named = panels.flat_map(|panel| panel.queries.iter().map(move |query| (panel.title, query.expr)));
        named.map(|(title, expr)| (format!("{}: {title}", self.uid), expr.to_owned())).collect()
    }

    /// Pretty, since people look at its changes.
    pub fn json(&self) -> String {
        let (mut panels, mut y, mut id) = (Vec::new(), 0, 0);
        let mut next_id = || {
            id += 1;
            id
        };
        for row in &self.rows {
            let place = json!({ "h": 1, "w": 24, "x": 0, "y": y });
            let id = next_id();
            panels.push(
                json!({ "id": id, "type": "row", "title": row.title, "collapsed": false, "gridPos": place, "panels": [] }),
            );
            y += 1;
            let in_row = 24 / PANEL_WIDTH;
            for (index, panel) in row.panels.iter().enumerate() {
                let place = (index % in_row * PANEL_WIDTH, y + index / in_row * PANEL_HEIGHT);
                panels.push(panel.json(next_id(), place));
            }
            y += row.panels.len().div_ceil(in_row) * PANEL_HEIGHT;
        }
        let mut variables =
            vec![json!({ "name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus" })];
        variables.extend(self.chains_of.map(|metric| {
            let query = format!("label_values({metric}{{job=\"ctrip\"}}, chain)");
            json!({
                "name": "chain",
                "type": "query",
                "datasource": source(),
                "query": { "query": query, "refId": "chain" },
                "refresh": 2,
                "multi": true,
                "includeAll": true,
                "allValue": ".+",
                "current": { "text": ["All"], "value": ["$__all"] },
            })
        }));
        let dashboard = json!({
            "uid": self.uid,
            "title": self.title,
            "tags": ["ctrip"],
            "schemaVersion": SCHEMA,
            "editable": true,
            "graphTooltip": 1,
            "refresh": "30s",
            "time": { "from": "now-6h", "to": "now" },
            "links": [{ "type": "dashboards", "title": "cTrip", "tags": ["ctrip"], "asDropdown": true, "keepTime": true }],
            "templating": { "list": variables },
            "panels": panels,
        });
        serde_json::to_string_pretty(&dashboard).expect("JSON") + "\n"
    }
}
