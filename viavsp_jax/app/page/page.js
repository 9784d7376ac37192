// A click on a word or a segment moves the players to its start; while one of them plays, a line moves over the strips.
const players = () => document.querySelectorAll("#recording video, #mouth video");

element.addEventListener("click", (event) => {
  const copy = event.target.closest(".copy");
  if (copy) {
    // Not navigator.clipboard, which a page without TLS has not. What is copied stays selected.
    getSelection().selectAllChildren(element.querySelector(".text"));
    if (document.execCommand("copy")) copy.textContent = copy.dataset.done;
  }
  const word = event.target.closest(".word");
  if (word) event.preventDefault(); // its segment stays open or closed
  const place = word ?? event.target.closest("summary")?.parentElement;
  if (place) players().forEach((player) => { player.currentTime = Number(place.dataset.start); });
});

const follow = (event) => {
  if (!element.isConnected) return document.removeEventListener("timeupdate", follow, true);
  if (![...players()].includes(event.target)) return;
  const time = event.target.currentTime;
  element.querySelectorAll(".segment").forEach((segment) => {
    const { start, end } = segment.dataset, share = (time - start) / (end - start);
    const head = segment.querySelector(".head");
    head.hidden = share <= 0 || share > 1;
    head.style.left = `${100 * share}%`;
  });
};
// Events of players do not bubble.
document.addEventListener("timeupdate", follow, true);
