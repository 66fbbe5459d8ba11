"""A small general text in our own words: plain prose on many subjects, on which “Did it learn?” sees what a LoRA forgot."""

GENERAL_TEXT = """\
A bridge has to carry its own weight before it can carry anybody else's. Most of the stone in an old arch does nothing but press on the
stone beside it, and that pressure is what keeps the whole thing standing. Take away a single block near the top and the arch falls; leave
it alone and it will stand for a thousand years, through floods and frost and the slow wear of wheels.

Bread needs four things: flour, water, salt and time. The first three can be bought. Yeast works quickly in a warm kitchen and slowly in a
cold one, and the slow loaf usually tastes better, because the flour has had longer to change. When the crust is dark and the bottom sounds
hollow under a knock, the loaf is done. Let it cool before you cut it, however hard that is.

The moon takes a little more than twenty-seven days to travel around the earth, and it turns once on its axis in the same time. That is why
we always see the same side. Nobody knew what the far side looked like until 1959, when a probe flew behind it and sent back a few blurred
photographs. They showed mountains and craters, and almost none of the dark plains that make up the face we know.

“Are you going to the market?” asked Anna. “If you are, could you bring some onions, and perhaps a lemon?” Her brother looked out of the
window. It had been raining since breakfast, and the street was full of puddles. “I will go when it stops,” he said. “It never stops on a
Tuesday,” said Anna, and she went to find her coat.

A computer stores a number as a row of switches, each of them either on or off. With eight switches there are two hundred and fifty-six
different rows, enough for the letters of the alphabet, the digits and a good many signs. Everything else, from a photograph to a piece of
music, is made of longer rows. The machine does not know what they mean; the program that reads them decides that.

In the spring of that year the town council voted to close the old swimming pool. Repairs would have cost more than a new building, said the
mayor, and there was no money for either. Three hundred people signed a letter against it. In the end a group of parents formed a club, bought
the pool for one coin, and spent four summers mending it themselves. It opened again on a windy day in June.

Whales sing, and their songs change from year to year. A tune that begins in one ocean can be heard two seasons later on the other side of
the world, passed along from group to group. Scientists who listen with microphones under the water can tell which population a whale belongs
to by the order of its phrases. Why they sing at all is still not quite certain.

To divide a fraction by a fraction, turn the second one over and multiply. Three quarters divided by one half is three quarters times two,
which is one and a half. The rule looks like a trick, but it only answers a simple question: how many halves fit into three quarters? One
whole half fits, and then half of another.

If you want to learn a language, speak it badly. Everybody who speaks it well has done so. A child makes thousands of mistakes in its first
years, and nobody minds; a grown person makes ten and goes home ashamed. Read what you enjoy, listen to people who talk too fast, and say
something every day, even if it is only to the cat.
"""
