import 'uplot/dist/uPlot.min.css';
import './torchwatt.css';
import './strip.css';
import './lab.css';
