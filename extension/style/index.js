import 'uplot/dist/uPlot.min.css';
import './torchwatt.css';
import './lab.css';
