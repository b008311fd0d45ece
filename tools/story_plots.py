"""Plots of the story generator, first half; notation in tools/data/stories.py."""

PLOTS: dict[str, str] = {
    "lost": """
* {hero} had a {thing} that {his} {elder} had [given {him}|made for {him}|found at the fair]. {He} took it everywhere.
- More than anything, {hero} loved {his} {thing}. It had been a present from {his} {elder}.
- On {his} birthday, {hero} got a {thing} from {his} {elder}. "[Take good care of it|Keep it safe|It is very old],"
  {ehe} said.
* {Time}, {hero} took the {thing:1} {place:1} to play. <weather>.
- {Time}, {he} went to {place} with the {thing:1} in {his} [pocket|bag|arms|hand]. <weather>.
- {Time}, [while|when] <weather>, {hero} carried the {thing:1} all the way to {place}.
? <detail>
* While {he} was {doing}, the {thing:1} [slipped|dropped|fell] to the ground and [rolled|slid] {spot}. {hero} did not
  [notice|see it|hear a thing].
- {He} put it down {spot} and began {doing}. [Soon|Before long] {he} had forgotten all about it.
- {hero} was so busy {doing} that {he} left the {thing:1} {spot}.
* / When it was time to go home, the {thing:1} was gone! <cry>
- / At supper, {hero} reached for the {thing:1}. It was not there! <cry>
- / Later {he} wanted to show the {thing:1} to {his} {elder}, but {his} hands were empty. <cry>
* {He} looked {spot2} and {spot3}, but all {he} found was a {thing2}.
- {He} searched {spot2}. {He} searched {spot3}. There was only a {material}.
- "[Where can it be|Where did I leave it|Who took it]?" {he} asked. {He} looked {spot2}, but it was not there.
* {friend}, a {fkind} who lived nearby, came along. "What is wrong?" asked {friend}. "I lost my {thing}," said {hero}.
  "[Think back|Try to remember|Close your eyes and think]," said {friend}. "What were you doing when you had it last?"
- Then {he} met {friend}, a <little> {fkind}. "I will help you look," said {friend}. "Where did you play?" "I was
  {doing} {place:1}," said {hero}.
- "Do not cry," said {friend}, the {fkind} next door. "We will find it together. Tell me what you did today." "I went
  to {place}," said {hero}, "and I was {doing}."
* / So they [walked|ran|hurried] back to {place}. {friend} looked {spot}, and there was the {thing}!
- / Together they went back to {place}. And there, {spot}, lay the {thing}, [a bit dusty|a little wet|safe and sound]!
- / "Then it must be {place:1}!" said {friend}. They looked {spot}, and [sure enough|yes], there it was: the {thing}!
* <smile> "Thank you, {friend}!" said {hero}. {He} let {friend} carry the {thing:1} all the way home.
- <smile> To say thank you, {he} gave {friend} the {material}.
- "You are a true friend," said {hero}, and [hugged|thanked] {friend}. <smile>
? {hero} learned to [take care of the things {he} loved|look after {his} things|think back before {he} cried].
- [From that day on|After that], {he} always looked twice before {he} went home.
- And {he} learned that a worry is only half as big when you share it.
""",
    "gift": """
* {His} {elder} was going to have a birthday, but {hero} had no money for a present.
- {hero} wanted to give {his} {elder} something special, [but {his} purse was empty|but did not know what].
- Soon it would be a big day for {his} {elder}. "I will make a present myself," {hero} [said|thought].
* / {Time}, {he} went out to look for [pretty things|something nice|ideas]. <weather>. {Place:1} {he} found a
  {material}.
- / {Time}, when <weather>, {hero} set out with a basket. First {he} went to {place} and found a {material}.
* Then {he} walked to {place2}, and there, {spot}, was a {material2}.
- {Spot} {he} saw a {material2}, and {he} put it in {his} pocket.
- {Place2:1} a kind {passer} gave {him} a {material2}.
? <detail>
* {Time2}, {he} met {friend}, a {fkind}. "What are you doing?" asked {friend}. "I am making a present for my {elder},"
  said {hero}. "Then take my {material3}," said {friend}.
- On the way home {he} met {friend}, a <little> {fkind}. {friend} had a {material3} and wanted to help.
- "You need one more thing," said {friend}, the {fkind} next door, and gave {him} a {material3}.
* / Back home, {hero} [glued|tied|put] the {material}, the {material2} and the {material3} together, and it became a
  [crown|wreath|picture|little ship|necklace|mobile|tiny house|brooch|funny bird].
- / They worked [until supper|all afternoon|for an hour]. From the {material}, the {material2} and the {material3}
  they made a [crown|wreath|picture|little ship|necklace|mobile|tiny house|brooch|funny bird].
? [But then it fell down and broke|But one part would not stick|But it looked a bit crooked]. <cry> "[Try again|Start
  over|We can fix it]," said {friend}, and they did.
* / When {his} {elder} opened the box, {ehis} eyes [shone|grew wide]. "Did you make this [yourself|for me]?" {ehe}
  asked. "With a {material} from {place}," said {hero}, "and {friend} helped me."
- / "Happy birthday!" cried {hero}. {His} {elder} looked at the {material}, the {material2} and the {material3} and
  [laughed|smiled|hugged {him}]. "This is the best present I ever had," {ehe} said.
* <smile> A present made with love is worth more than gold.
- <smile> The best gifts are not bought in a shop.
- <smile> Together they hung it up where everyone could see it.
""",
    "share": """
* {Time}, {his} {elder} packed {food:1} for {him}. "[Enjoy it|Do not eat it all at once|There is enough for two],"
  {ehe} said.
- {Time}, {hero} had {food:1} for lunch. It [smelled|looked] wonderful.
- {Time}, {he} got {food:1} from {his} {elder} and carried it to {place}.
* {Place:1} {he} met {friend}, a <little> {fkind} who looked <sad>. "I am so hungry," said {friend}. "I [forgot|lost|
  dropped] my lunch."
- {He} sat down {spot} {place:1}. Then {friend} came along, a {fkind} with nothing to eat. "That smells good," said
  {friend}.
- {friend}, a {fkind}, was sitting {spot}, all alone. "What do you have there?" asked {friend}.
* / {hero} held the {food} tight. {He} wanted to keep everything. "It is mine," {he} said, and {friend} [turned
  away|looked at the ground|began to cry].
- / {hero} thought about the {food}. There was not [much|enough]. "I do not want to share," {he} said, and {friend}
  walked away slowly.
- / At first {hero} [hid|covered] the {food} [behind {his} back|with {his} hat|under {his} coat]. "I have nothing,"
  {he} said.
? But the {food} did not taste as good as {he} had [hoped|thought].
- {hero} took a bite, but it did not taste good. <cry>
- <detail>
* Then {he} remembered what {his} {elder} always said: "[A meal is better with a friend|Half a cake and a friend is
  more than a whole cake|Shared joy is double joy|Kind hands are never empty]."
- {He} thought of {his} {elder}, who always shared. {hero} felt ashamed.
- {He} looked at {friend} again and saw how <sad> {fhe} was.
* / "Wait, {friend}!" {he} called. "I am sorry. Let us share." {He} [divided|shared out] the {food}, and {friend} got
  the bigger part.
- / "Come back!" called {hero}. "There is enough for both of us." They sat down {spot2} and ate together.
- / So {he} ran after {friend}. "Please take half," {he} said. {friend} [smiled|laughed] and took the {food}. "Thank
  you, {hero}!"
* The next day it was the other way around: {hero} had no lunch, and {friend} brought {food2:1} for both of them.
- A week later {friend} came to {home} with {food2:1}. "Now I share with you," said {friend}.
- After the meal, {friend} took out a {thing} and let {hero} play with it.
* <smile> Sharing makes everything taste better.
- <smile> From then on they shared everything, [even the last crumb|big and small].
- <smile> "I like the {food}," said {hero}, "but I like my friend more."
""",
    "rescue": """
* {friendship}
* {Time}, {hero} was walking {place:1} when {he} heard a [tiny|weak|sad] sound. {Spot} sat a <young> {critter}.
- {Time}, when <weather>, {he} found a <young> {critter} {spot}. It was shaking.
- {Time}, {hero} went to {place}. There, {spot}, something moved. It was a <young> {critter}!
* It was [hurt|caught in a thorn bush|stuck between two stones|tangled in a string|all wet and cold] and could not get
  away.
- The {critter} was all alone, and it looked [hungry|scared|cold|tired].
- "Help," it seemed to say. <cry>
* / "Do not be afraid," said {hero}. {He} wrapped the {critter} in {his} [scarf|coat|hat|shirt] and carried it home.
- / "[Poor little thing|You poor thing]," said {hero}. Very gently {he} picked up the {critter} and took it to {his}
  {elder}.
- / {hero} wanted to help, but how? {He} put the {critter} into {his} [hat|basket] and hurried home.
* {His} {elder} looked at the {critter}. "It needs [rest|warm milk|a quiet place|time]," {ehe} said. "And it must go
  home when it is well."
- "May I keep it?" asked {hero}. "No," said {his} {elder}, "it belongs {place:1}. But you may help it until it is
  strong."
* They made a bed from a <color> [blanket|scarf|box|basket|hat|pillow] and some straw. {hero} named the {critter}
  {pet}.
- {hero} called it {pet} and fed it [seeds|crumbs|drops of water|oats] with a spoon.
- {friend} knew a lot about animals and helped. They named the {critter} {pet} and kept it warm.
? For {number} days {hero} [watched|cared] and waited. {pet} slept and slept.
- Every evening {he} sang a song for {pet}. <detail>
* / After {number} days, {pet} was well again. {hero} knew what {he} had to do. <cry> {He} carried {pet} back to
  {place}.
- / At last {pet} was strong. "It is time," said {his} {elder}. They walked to {place}, and {hero} opened {his} hands.
- / One morning {pet} [hopped up|looked at the window|made a happy sound]. So {hero} took the {critter} back to
  {place}.
* {Spot} {he} [put|set] {pet} down. "Goodbye, {pet}," {he} [whispered|said]. The {critter} looked back once and was
  gone.
- There, {spot}, its mother was waiting! {pet} ran to her, and {hero} waved.
* / Many weeks later, {hero} found a {material} {spot}. "It is from {pet}!" {he} said. <smile>
- / The next spring, a {critter} came to {home} every morning. It was {pet}! <smile>
- / {hero} missed {pet}, but {he} was <glad>. To love someone is to let them go home.
- / <smile> Even the smallest creature needs a friend.
""",
    "fear": """
* {friendship}
* But {hero} was afraid of {fear}. {He} did not want anyone to know.
- There was only one problem: {hero} was scared of {fear}.
- {He} could do many things, but {fear} always made {him} shake.
* {Time}, {his} {elder} noticed. "I was afraid of {fear} too when I was small," {ehe} said. "Here is my secret:
  {trick}."
- {Time}, {he} told {his} {elder} about it. "When you are afraid," {ehe} said, "just {trick}. It always helps."
- {Time}, {friend} found {him} {spot}. "Are you afraid of {fear}?" asked {friend}. "Then do what I do: {trick}."
? "That sounds silly," said {hero}. But {he} remembered it.
- {hero} nodded, but {he} did not think it would work.
- <detail>
* / Then came the day when {friend} was in trouble. The {fkind} was stuck {place:1}, and to get there {hero} had to
  adapter {fear}.
- / {Time2}, {hero} and {friend} were playing {place:1}. <weather>. They were {doing} when {friend} [fell|slipped] and
  hurt {fhis} [foot|knee|leg]. "I need help!" cried {friend}. But between them and help was {fear}.
- / {Time2}, {friend} lost a {thing} {place:1}. "I am too small to get it," said {friend}. It was {spot}, and {hero}
  knew that {he} would have to adapter {fear}.
* {His} knees shook. {His} heart went boom, boom, boom. <cry>
- "I cannot do it," {he} whispered. {His} legs felt like [jelly|noodles|pudding|wet string].
- {He} wanted to run back to {home} and hide.
* / Then {he} remembered the secret: {trick}. {He} did it once. {He} did it again. And {he} took one step, and then
  another.
- / "What was the secret?" {he} thought. "{trick}!" So {he} closed {his} eyes and did just that. [Slowly|Little by
  little] the fear grew [smaller|quiet].
- / {hero} thought of {friend}. Then {he} did as {he} had learned: {trick}. And it worked!
* Soon {he} was at the other side, and {friend} was safe. "You did it!" cried {friend}. <smile>
- A little later {friend} was safe. "Were you not afraid of {fear}?" asked {friend}. "I was," said {hero}, "but I did
  it."
- [Before|When] the sun went down, everything was well again. <smile>
* To be brave does not mean that you have no fear. It means that you try [anyway|all the same].
- {hero} was still a little afraid of {fear}. But now {he} knew what to do.
- After that, {fear} did not seem so bad. And when {friend} was afraid, {hero} [shared|told] the secret: {trick}.
""",
    "practice": """
* {friendship}
* {hero} wanted to learn how to {skill}. All the others could do it, but {he} could not.
- More than anything in the world, {hero} wanted to {skill}.
- {Time}, {hero} saw {friend} {skill:2} {place:1}. "I want to {skill} too!" {he} said.
* / {Time2}, {he} tried for the first time. It went all wrong. <cry>
- / {He} tried {place:1}, where no one could see {him}. {He} tried {number} times and failed {number2} times.
- / The first day was hard. The second day was harder. "I will never learn to {skill}," {he} [sighed|said|cried].
* An old and wise {passer2} [watched {him}|sat nearby]. "How many times did you try?" the {passer2} asked.
  "{number2}," said {hero}. "Then try once more."
- "Look," said {friend}. "I fell down {number} times before I could {skill}. Do it slowly, like this."
- {His} {elder} smiled. "Nobody can {skill} on the first day," {ehe} said. "First you {trick}. Then you try again."
? <detail>
- [That night|In bed] {hero} dreamed about {skill:2}. In the dream it was easy.
* / So {hero} practiced [every day after school|every morning|before supper|in the sun and in the rain]. After
  {number} days it went a little better. After {number2} weeks it went well.
- / {He} practiced {place:1}. {He} practiced {spot}. {He} even practiced in {his} sleep!
- / Day after day {he} went to {place} and tried again, while {friend} watched and [clapped|helped|counted].
* And then, {time3}, it happened. {hero} {skill:1}! {He} really did it! "Look at me!" {he} shouted.
- Then came the big day. Everyone was {place2:1}. {hero} took a deep breath and {skill:1}, just like that.
- {Time3}, without thinking about it, {hero} {skill:1}. {friend} [jumped up|clapped|cheered]. "You did it!"
* <smile> {friend} gave {him} a {thing} as a prize.
- <smile> {His} {elder} brought {food:1} to celebrate, and {friend} came too.
- <smile> "I told you so," said {friend}.
* Those who keep trying will get there in the end.
- Now a <little> {passer} wanted to {skill} too. "Let me show you," said {hero}. "Do it slowly, and never give up."
- And that is how {hero} learned to {skill}, and something even better: to be patient.
""",
    "warning": """
* {friendship}
* "You may play where you like," said {his} {elder}, "but do not {forbid}."
- {Time}, {his} {elder} had to go to {place}. "Be good," {ehe} said, "and please do not {forbid}."
- There was one rule in {home}: do not {forbid}. {His} {elder} said it every day.
* "I promise," said {hero}. [And {he} meant it|But {he} was curious|{He} even crossed {his} heart].
- "Why not?" asked {hero}. "Because it is [dangerous|not good for you|not safe]," {ehe} said. "I promise," said
  {hero}.
? <weather>. {hero} played with {his} {thing} {place2:1}. <detail>
- For a while {he} played with a {thing}. <detail>
* / But then {friend} came by. "Come on," said {friend}. "[Nobody will know|Just once|Do not be a baby]."
- / But soon {hero} was bored. "Just once will be all right," {he} [thought|told {himself}].
- / "What could happen?" {he} asked {friend}. {friend} did not know.
* {hero} looked left and right. Then {he} {forbid:1}. {forbid:2}.
- So {he} {forbid:1}. At first it was fun. But then it was not fun at all. {forbid:2}.
- And what did {he} do? {He} {forbid:1}! {forbid:2}.
* / "Help!" {he} cried. {friend} ran to get {his} {elder}, who came at once.
- / <cry> "I should have listened," {he} said. Then {he} heard steps. It was {his} {elder}!
- / {hero} wanted to hide {spot}. But {his} {elder} had already seen what had happened.
* "I broke my promise," said {hero}. "I {forbid:1}. I am sorry." {His} {elder} [took {his} hand|was quiet for a
  while|sat down beside {him}]. "Thank you for telling the truth," {ehe} said.
- "Did I not tell you?" asked {his} {elder}, but {ehe} was not angry, only sad. "I am sorry," said {hero}, [and {he}
  meant it|very softly].
* They put everything in order again, [and it took all day|step by step], and then they had {food}.
- To make up for it, {hero} [swept the floor|fetched the water|washed all the plates|picked flowers] for {number}
  days.
- {His} {elder} gave {him} {food:1} and a hug. "Rules are there to keep you safe," {ehe} said.
* After that day, {hero} never {forbid:1} again. And when {friend} wanted to, {he} said, "No. I promised."
- A promise is a promise. {hero} never forgot that.
- The next time someone asked {him} to {forbid}, {he} [shook {his} head|said no|laughed and said no].
""",
}
