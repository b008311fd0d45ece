"""Plots of the story generator, second half; notation in tools/data/stories.py."""

MORE_PLOTS: dict[str, str] = {
    "map": """
* {friendship}
* / {Time}, {hero} found a piece of paper {spot3}. It was a map! "[Look|Come and see], {friend}!" {he} called.
- / {Time}, {hero} and {friend} were playing {place3:1} when they found an old bottle. Inside it was a
  [letter|map|note].
- / {Time}, the wind blew a [yellow|torn|folded] paper into {his} hands. It was a map! {He} ran to show {friend}.
* It said: "First go to {place}. Then go to {place2}. Then look {spot}."
- "Walk to {place}," it said, "and from there to {place2}. What you seek is {spot}."
- There was a picture of {place}, then a picture of {place2}, and at last a cross {spot}.
? "A treasure!" cried {friend}. "[Let us go|Maybe it is gold|We will be rich]!"
- "Is it real?" asked {friend}. "There is only one way to find out," said {hero}.
- "Let me pack {food:1} first," said {hero}. "It may be a long way."
* / So they went to {place}. <weather>. There they [met|saw] a <little> {passer2} with a {thing2}.
- / First they walked to {place}, as the map said. <detail>
- / They set off at once. It was far to {place}, and they sang all the way.
* Next came {place2}. {friend} wanted to turn back, but {hero} said, "We are so close."
- From there they hurried to {place2}. It was <number> hundred steps, and {hero} counted every one.
- Then they went on to {place2}, [over a stream|through tall grass|past a sleeping {passer3}].
* "And now?" asked {friend}. {hero} looked at the map again. "[Here|Now] we look {spot}," {he} said. They dug with
  their hands.
- {hero} remembered the last line, and they looked {spot}. Something was there!
- At last they stood {spot}. {friend} pushed the leaves away.
* / It was a box, and in it lay a {thing} and a letter. "Well done," it said. "[Now hide it for someone else|The real
  treasure is the walk|Whoever finds this is a true explorer]."
- / They found a {thing}! "It must be a hundred years old," said {friend}. <smile>
- / There was no gold, only a {thing}. At first {friend} was a bit sad. But {hero} laughed. "We found it together,"
  {he} said.
* When they came home, {his} {elder} smiled. "I drew that map," {ehe} said. "Was {place2} nice?"
- They told {his} {elder} about {place} and {place2}, and showed {ehim} the {thing}. <smile>
- They hid the {thing} {spot} again, with a new map, so that another child could find it.
* The best treasure is a day with a friend.
- And they shared the {thing}: one day it was with {hero}, the next day with {friend}.
""",
    "contest": """
* {friendship}
* / {Time}, there was a big poster {place:1}. "[Come to|Join] {contest}!" it said. "The winner gets a {thing}."
- / {contest} was held {place:1} every year. This year the prize was a {thing}, and {hero} wanted to win it.
- / "{contest} is on Sunday," said {friend}. "The prize is a {thing}!" {hero} could think of nothing else.
* {He} practiced {place2:1} for <number> days. {friend} practiced too.
- "I will win," said {hero}. "No, I will," said {friend}, and they both laughed.
- {His} {elder} helped {him} get ready. "Do your best," {ehe} said, "and be fair."
? <detail>
- The night before, {he} could not sleep.
* / At last the day came, and <weather>. Everybody was {place:1}. "Ready, set, go!" called an old {passer2}.
- / On the big day there were <number> [teams|racers|pairs]. A {passer2} with a {thing2} gave the sign, and off they
  went.
* {hero} was [first|ahead|in front] when {he} heard a cry. {friend} had [fallen|slipped] {spot} and could not get up.
- It went well at the start. But then {friend} [tripped|fell] and landed {spot}. "Ouch!" cried {friend}.
- {hero} could already see the {thing}. Then {he} looked back and saw {friend} {spot}, with a hurt [foot|knee|hand].
* {hero} looked at the prize. {He} looked at {friend}. What should {he} do? Then {he} turned around.
- "I can win now," {he} thought. But a friend was more than a {thing:1}. So {he} stopped and went back.
- {hero} did not think twice. {He} ran back to {friend}.
* / "Lean on me," said {hero}. Together they went on, slowly, and came in last.
- / "Go on without me," said {friend}. "Never," said {hero}. They finished hand in hand, after all the others.
- / {He} helped {friend} up and tied {his} scarf around the sore place. By then the contest was over.
* A {passer3} had won the {thing}. But then the old {passer2} stood up. "There is one more prize," said the {passer2}.
  "{hero} gets {food:1} for being {trait}." Everyone clapped.
- "You lost because of me," said {friend}. "I did not lose anything," said {hero}. <smile>
- The next day {friend} came with a present. It was a {thing3}. "For me, you were the winner," said {friend}. <smile>
* It is good to win, but it is better to be a friend.
- Nobody remembers who won that day. But everybody remembers what {hero} did.
- They ate {food2} together and planned what to do next year.
""",
    "truth": """
* {friendship}
* On a shelf in {home} stood a {fragile}. It belonged to {his} {elder}, and {he} was not allowed to touch it.
- {His} {elder} had a {fragile} that came from {ehis} own {kin}. "It is very dear to me," {ehe} said.
- There was a {fragile} on the table. {His} {elder} had [bought it far away|made it long ago|kept it for years].
* / {Time}, {hero} was {indoors}. Crash! The {fragile:1} fell down and broke into <number> pieces.
- / {Time}, {he} was playing with a {thing} when it hit the {fragile:1}. Crash! It lay on the floor in <number>
  pieces.
- / {Time}, {hero} wanted to look at the {fragile:1} just once. It slipped out of {his} hands and broke.
* <cry> Quickly {he} hid the pieces {hideout}.
- "Oh no!" {he} whispered. {He} gathered up the pieces and put them {hideout}. <cry>
* / When {his} {elder} came home, {ehe} asked, "Where is my {fragile:1}?" "I do not know," said {hero}. "Maybe the
  [cat|wind|neighbor] took it."
- / "Have you seen my {fragile:1}?" asked {his} {elder} at supper. "No," said {hero}, and looked at {his} plate.
- / {His} {elder} looked everywhere. "It was here this morning," {ehe} said. {hero} said nothing.
* But {he} could not eat {his} {food}, and {he} could not sleep. It felt as if a stone lay in {his} [belly|chest].
- The {food} tasted like sand. Even {love} was no fun.
- All night {he} thought about what was {hideout}. {He} felt <sad>.
? {friend} asked, "What is wrong?" {hero} told {fhim} everything. "You must tell the truth," said {friend}. "It only
  gets heavier."
- <detail>
- In {his} dream the {fragile:1} came and asked, "Why do you leave me in the dark?"
* / In the morning, {hero} took a deep breath. "I broke your {fragile:1}," {he} said. "The pieces are {hideout}. I was
  afraid that you would be angry."
- / At last {he} took {his} {elder} by the hand and showed {ehim} the pieces {hideout}. "It was me," {he} said. "I am
  so sorry."
* {His} {elder} was quiet. Then {ehe} said, "I am sad about the {fragile:1}. But I am <glad> that you told me."
- "I know," said {his} {elder}. "I was waiting for you to tell me." And {ehe} took {him} in {ehis} arms.
* Together they glued the {fragile:1}. It had cracks now, but {his} {elder} said that it was more beautiful than
  before.
- They used the pieces to make a picture of a {shape}, and hung it on the wall. <smile>
- {hero} gave {his} own {thing2} to make up for it. <smile>
* The truth may be hard to say, but it makes the heart light.
- That night the {food} tasted good again.
- {He} never told a lie about such a thing again.
""",
    "garden": """
* {Time}, {his} {elder} gave {him} a tiny seed. "What will it be?" asked {hero}. "Wait and see," said {his} {elder}.
- {Time}, {hero} got a seed from an old {passer2} {place2:1}. "It needs water, sun and time," said the {passer2}.
- {Time}, {he} found <number> seeds in the pocket of an old coat. "[Plant|Put] them in the ground," said {his}
  {elder}.
* {hero} dug a hole {spot} {place:1} and put the seed in.
- {He} chose a good place for it: {place:1}, {spot}.
* / {friend}, the {fkind} next door, came to look. "There is nothing here," said {friend}. "[It is asleep|Just wait],"
  said {hero}.
- / "What are you doing?" asked {friend}, a <little> {fkind}. "I am growing a surprise," said {hero}.
- / Every day {he} went there with {friend}, a {fkind} who liked to dig.
* Every morning {hero} gave it water from a {cup}. One week went by. Nothing happened. <cry>
- After <number> days, with a full {cup} of water each day, there was still nothing to see. "Maybe it is a stone,"
  said {friend}. <cry>
- {He} watered it with a {cup}. {He} sang to it. {He} told it about {love}. But nothing came up.
? "Dig it up and look," said {friend}. "No," said {hero}, "that would hurt it."
- Then it rained for <number> days. <detail>
- <detail>
* / And then, {time2}, something green peeped out {spot}! <smile>
- / But when <weather>, {hero} saw it at last: a small green leaf. <smile>
* The plant grew and grew. Soon it was as tall as the {cup}. Then it was as tall as {friend}.
- Bees came, and a [snail|ladybug|beetle|butterfly|robin] sat on it. Then the first flower opened.
- One night a storm came. {hero} ran out and tied the plant to a stick with a {material}. In the morning it still
  stood.
* / By the end of the summer there were <number> {plant:1}. "So that is what it was!" cried {friend}.
- / In autumn {he} picked the {plant:1} and put them into a basket. There were <number> in all.
- / "{plant:1}!" shouted {hero}. "They are {plant:1}!"
* {He} gave some to {friend}, some to {his} {elder}, and kept one seed for the next year.
- They had a little party {place:1}, with {food:1} and everything that {hero} had grown. <smile>
- {friend} got the biggest one. "I am sorry that I laughed," said {friend}. <smile>
* Good things grow slowly. You only have to care for them.
- A little water every day can do great things.
- And {hero} put the empty {cup} back on the shelf, until spring.
""",
    "swap": """
* {Time}, {hero} packed {his} {bag}. {He} put in a {thing} and {food:1}. Then {he} set out for {place}.
- {Time}, {hero} went to {place} with {his} {bag}. In it were a {thing} and {food:1}.
* It was busy and loud {place:1}. {He} put the {bag} down {spot} for a moment. <detail>
- {hero} sat down to rest and put {his} {bag} {spot}. Next to it stood another {bag} that looked just the same.
* / At home {he} opened the {bag}. But what was this? There was no {thing:1}. There was a {thing2} and a {material}!
- / When {he} wanted to eat {his} {food}, {he} found a {thing2} instead, and a {material}. It was the wrong {bag}!
  <cry>
* "You must have taken the wrong one," said {his} {elder}. "Someone is looking for that {thing2:1} right now."
- {hero} liked the {thing2}. "Can I keep it?" {he} asked. "How would you feel if someone kept your {thing:1}?" asked
  {his} {elder}.
* {hero} looked for a clue. On the {thing2:1} there was a name: {friend}.
- Inside the {bag} there was a letter. "Dear {friend}," it said, "have fun {place2:1}."
? "{friend}," {hero} read. "I do not know anyone with that name."
- {He} asked a {passer2}. {He} asked a {passer3}. Nobody knew {friend}.
* / So they went back to {place}. And there, {spot}, sat a <little> {fkind} with a {bag}, looking <sad>.
- / The next day {he} went to {place} again. A {fkind} stood {spot} and looked all around.
* "Are you {friend}?" asked {hero}. "I think this {thing2:1} is yours." The {fkind} jumped up. "Yes! And is this your
  {thing}?"
- "Excuse me," said {hero}, "did you lose a {thing2}?" "I did!" cried {friend}. "And I have your {thing:1}. But I have
  eaten your {food}. I am sorry."
* / They both laughed and swapped. <smile> Then they shared {food2:1} that {friend} had brought.
- / <smile> "You can borrow my {thing2:1}," said {friend}. "And you can borrow my {thing:1}," said {hero}.
* That is how {hero} found a new friend, and all because of a {bag}.
- After that, {hero} tied a {material2} to {his} {bag}, so that it would never get mixed up again.
- To give back what is not yours feels better than to keep it.
""",
    "errand": """
* {Time}, {his} {elder} said, "Please go to the market and bring {food:1}, {food2:1} and {food3:1}."
- {Time}, {his} {elder} was cooking a big supper. "I still need {food:1}, {food2:1} and {food3:1}," {ehe} said. "Can
  you get them?"
* {hero} had no pencil to write it down. So {he} made up a song: "{food}, {food2}, {food3}!" {He} sang it again and
  again.
- "{food}, {food2}, {food3}," {he} said to {himself}. "I will not forget."
- {He} took a {bag} and went off. <weather>.
? <detail>
* / On the way {he} met {friend}, a <little> {fkind} who was {doing}. {hero} stopped to play.
- / {Place:1}, {friend}, a {fkind}, called, "Come and see my {thing}!" It was such a nice {thing:1} that {hero} forgot
  the time.
- / Then {he} saw a {passer2} with a {thing} {place:1}, and {he} laughed so hard that {he} forgot everything.
  {friend}, a {fkind}, laughed too.
* When {he} came to the market, {he} bought {food:1}. {He} bought {food2:1}. But what was the last thing? <cry>
- At the market {he} remembered the {food}. {He} remembered the {food2}. But there had been something else. <cry>
* "Was it {food4:1}?" asked {friend}. "No," said {hero}. "Was it {food5:1}?" "No, not that."
- "Think of your {elder}," said {friend}. "What is {ehe} cooking?"
- {He} walked back to the place where {he} had stopped, and said it all from the start.
* / "{food}, {food2}..." {he} sang. And then it came back to {him}. "{food3}!" {he} shouted.
- / {hero} closed {his} eyes and thought of home. "{food3}!" {he} cried. "It was {food3}!"
* {He} bought {food3:1}, thanked {friend}, and ran all the way home.
- The {passer3} at the stall laughed and gave {him} {food3:1}. {friend} helped {him} carry it.
* / "[Well done|Just right|Perfect]," said {his} {elder}, "{food}, {food2} and {food3}. You did not forget a thing."
  <smile>
- / "You were gone for a long time," said {his} {elder}. {hero} told {ehim} about {friend} and the song. <smile>
* They asked {friend} to stay for supper, and there was enough for all.
- First the work, then the play, thought {hero}. But a little bit of play is fine.
- Next time, {he} took a pencil with {him}.
""",
    "storm": """
* {friendship} {friend} lived near {place}, in a hut made of [sticks|straw|old boards].
* / {Time}, dark clouds came. The wind [howled|roared|whistled], and soon the rain was [pouring|falling hard].
- / {Time}, there was a great storm. [Branches broke|Leaves flew|Doors banged], and the sky turned black.
* {hero} was warm and dry in {home}. Then {he} thought of {friend}. <cry>
- {hero} sat by the fire and ate {food}. But {he} could not stop thinking of {friend}, so {he} put on {his} coat.
- "I hope {friend} is safe out there," said {hero}. "Let us look," said {his} {elder}, and took the lantern.
* / They found {friend} {spot}, [cold|shaking|wet to the skin]. "Come with us," said {hero}. "There is room for you."
- / {hero} met {friend} on the path, all wet. {He} gave {fhim} a blanket and {food:1}. "You can sleep here," {he}
  said, "as long as you like."
? But {friend} was <sad>. "My {thing2} is lost," {fhe} said. "I had it from my {kin}."
- All night the storm [shook the walls|sang in the chimney]. To forget it, they told stories about a {shape} and a
  {passer2}.
* / In the morning, <weather>. They went to {place}. Of the hut there was nothing left but a {material} and a
  {material2}.
- / When the storm was over, a rainbow stood over {place}. {hero} and {friend} looked at what was left: a {material},
  a {material2}, and a lot of mud.
* "We will build a new one," said {hero}. "A better one." {His} {elder} brought [nails|boards|rope|stones], and {he}
  asked everyone to help.
- "Do not worry," said {hero}. "Many hands make a house." And {he} went from door to door.
* A {passer2} brought [straw|a hammer|paint]. A {passer3} brought [boards|a saw|a window]. They worked for <number>
  days.
- For <number> days they all worked together, and in the evening they ate {food2}.
? And {spot}, under the wet leaves, {hero} found a {thing2}! "That is mine!" cried {friend}.
- <detail>
* / The new hut was <color>, with a [round|<color>] door, and over the door hung the {material}. <smile>
- / At last it was done. {friend} danced through the rooms. "It is the finest house in the world," {fhe} said. <smile>
* A storm can take a house away, but not a friend.
- And whenever it rained, {friend} made tea, and they sat together and listened.
""",
    "newcomer": """
* {Time}, a new family moved in near {place}. With them came {friend}, a <little> {fkind} with a {thing}.
- {Time}, {hero} saw a {fkind} who was sitting {spot}, all alone, with a {thing}. {His} {elder} said, "That is
  {friend}. {Fhe} is new here."
* {hero} said hello, but {friend} only looked at the ground. {fhe} was too shy to speak.
- "Do you want to play?" asked {hero}. {friend} shook {fhis} head and hid behind the [gate|fence|door].
- The others laughed because {friend} spoke in a strange way. {hero} did not like that.
? <cry> "Maybe {friend} does not like me," {he} said.
- "Give it time," said {his} {elder}. "When I was new, I was shy too."
- <detail>
* / The next day {hero} put {food:1} {spot}, and went away. When {he} came back, there was a {material} in its place.
- / {hero} had an idea. {He} drew a picture of a {shape} and left it {spot}. In the evening there was a picture of a
  {shape2} there.
- / Then {hero} saw that {friend} was {love}. "I love that too!" {he} called.
* The day after, {he} left a {material2}. {friend} left a {material3}. So it went on for <number> days.
- So they spent the days {love}, side by side, without a word. It was nice all the same.
* / {Time2}, {friend} lost the {thing:1} [in the river|on the way|in the wind]. {hero} jumped up, ran after it and
  caught it.
- / {Time2}, a big {passer2} took the {thing:1} away from {friend}. "Give it back," said {hero}. And the {passer2}
  did.
* "Thank you," said {friend}. It was the first word {fhe} had said. <smile>
- {friend} looked up and smiled. "What is your name?" {fhe} asked. "I am {hero}," said {hero}. <smile>
* / From that day on, they met {place2:1} every day. {friend} showed {hero} how to {skill}.
- / {friend} came to {home} for {food2:1}, and told them all about the land {fhe} came from.
- / Then {hero} took {friend} to the others. "This is my friend," {he} said. "{Fhe} can {skill}!" Now nobody laughed.
* A friend is a stranger whom you have not met yet.
- Sometimes you have to wait a little until a friend opens the door.
- The {thing:1} stood on the window sill, and they both laughed when they thought of the first day.
""",
}
