document.querySelectorAll('svg[data-chart]').forEach(function (svg) {
  var data = JSON.parse(svg.dataset.chart), card = svg.closest('.card'), tip = null;
  var left = 58, right = 14, width = 640;
  svg.addEventListener('pointerleave', function () { if (tip) { tip.remove(); tip = null; } });
  svg.addEventListener('pointermove', function (event) {
    var box = svg.getBoundingClientRect();
    var part = ((event.clientX - box.left) / box.width * width - left) / (width - left - right);
    var x = data.x[0] + part * (data.x[1] - data.x[0]), rows = [], at = null;
    data.lines.forEach(function (line) {
      var best = null;
      line[1].forEach(function (point) {
        if (!best || Math.abs(point[0] - x) < Math.abs(best[0] - x)) best = point;
      });
      if (!best) return;
      at = best[0];
      rows.push(line[0] + ': ' + best[1].toLocaleString() + ' ' + data.units[1]);
    });
    if (at === null) return;
    if (!tip) { tip = document.createElement('div'); tip.className = 'tip'; card.appendChild(tip); }
    tip.textContent = '';
    [at.toLocaleString() + ' ' + data.units[0]].concat(rows).forEach(function (text) {
      var line = document.createElement('div'); line.textContent = text; tip.appendChild(line);
    });
    var frame = card.getBoundingClientRect(), offset = event.clientX - frame.left;
    var flip = offset > frame.width - tip.offsetWidth - 24;
    tip.style.left = (flip ? offset - tip.offsetWidth - 12 : offset + 12) + 'px';
    tip.style.top = (event.clientY - frame.top - 10) + 'px';
  });
});
