// A served page asks its server for the runtime's counters once a second.

let liveNumbers = null;

function startLive() {
  const badge = document.getElementById("live");
  badge.hidden = false;
  const ask = async () => {
    try {
      const answer = await fetch("metrics.json", { cache: "no-store" });
      if (!answer.ok) throw new Error(String(answer.status));
      liveNumbers = await answer.json();
      badge.classList.remove("lost");
      badge.textContent = `● live · ${format.count(liveNumbers.stats.requests)} requests in ${Math.round(liveNumbers.seconds)} s`;
      for (const listener of listeners) listener({ live: true });
    } catch {
      badge.classList.add("lost");
      badge.textContent = "○ the server does not answer";
    }
    setTimeout(ask, 1000);
  };
  badge.textContent = "○ connecting";
  ask();
}
