/* Sentences of our own, written for this page. */
export const EXAMPLES = [
  {
    name: "Praise",
    text: "A warm, funny and beautifully acted film that earns every one of its tears.",
  },
  {
    name: "A pan",
    text: "The jokes are stale, the plot makes no sense, and two hours have never felt so long.",
  },
  {
    name: "Mixed feelings",
    text:
      "The first hour drags and the dialogue is clumsy, but the last scene is so honest and so " +
      "tender that I forgave it everything.",
  },
  {
    name: "A full review",
    text:
      "I went in with low hopes, since the trailer gives away half of the story and the posters " +
      "promise one more tired comedy about a wedding.\n\n" +
      "What I found is a small, clever film about two sisters who have stopped talking. The script " +
      "lets them be petty and wrong for a long time, and the two actors never beg for our " +
      "sympathy. There are weak spots: the subplot with the neighbour goes nowhere, the music is " +
      "too loud, and a chase near the end belongs in another, worse movie.\n\n" +
      "But the quiet kitchen scene is a wonder, sharp and painful and very funny at once. I left " +
      "the cinema smiling and called my own sister on the way home.",
  },
];
