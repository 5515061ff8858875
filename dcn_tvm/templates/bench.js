const read = (id) => JSON.parse(document.getElementById(id).textContent);
const show = { renderer: "svg", actions: false, tooltip: { theme: "light" } };

// The bundle is a module, which only an address can import: here the address of a text of this page.
const code = document.getElementById("datatables").textContent;
const address = URL.createObjectURL(new Blob([code], { type: "text/javascript" }));
const { default: DataTable } = await import(address);
URL.revokeObjectURL(address);

for (const { id, columns, data } of Object.values(read("tables"))) {
  const plain = DataTable.render.text();
  new DataTable(`#table-${id}`, {
    data,
    columns: columns.map((c) => (c.type === "string" ? { ...c, render: plain } : c)),
    order: [],
    deferRender: true,
    autoWidth: false,
    pageLength: 15,
    lengthMenu: [15, 50, 200, { label: "all", value: -1 }],
    layout: {
      topStart: "search",
      topEnd: {
        buttons: [
          { extend: "colvis", text: "Columns" },
          { extend: "csv", text: "CSV", filename: id },
        ],
      },
      bottomStart: ["info", "pageLength"],
      bottomEnd: "paging",
    },
  });
}
for (const [id, chart] of Object.entries(read("charts"))) {
  await vegaEmbed(`#chart-${id}`, chart, show);
}
document.documentElement.dataset.drawn = "yes";
